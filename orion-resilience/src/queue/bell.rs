//! Wakes those who wait for work.
//!
//! One token at most lies in it: whoever puts something into the queue rings, whoever takes something and leaves more
//! rings again, and whoever finds the queue closed rings for the next. So nobody sleeps while there is work.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use self::channel::Bell;
#[cfg(any(loom, shuttle))]
pub(crate) use self::modelled::Bell;

#[cfg(not(any(loom, shuttle)))]
mod channel {
    use crossbeam_channel::{Receiver, Sender, bounded};
    use std::time::Instant;

    #[derive(Debug)]
    pub(crate) struct Bell(Sender<()>, Receiver<()>);

    impl Bell {
        pub(crate) fn new() -> Self {
            let (ring, wait) = bounded(1);
            Self(ring, wait)
        }

        pub(crate) fn ring(&self) {
            // Full means that someone will wake anyway.
            let _ = self.0.try_send(());
        }

        /// Waits for a ring, or to the end of time. Answers whether it rang.
        pub(crate) fn wait(&self, until: Option<Instant>) -> bool {
            match until {
                None => self.1.recv().is_ok(),
                Some(until) => self.1.recv_deadline(until).is_ok(),
            }
        }
    }
}

/// The same of what the model checkers can see.
#[cfg(any(loom, shuttle))]
mod modelled {
    use crate::sync::{Condvar, Mutex, lock, wait};
    use std::time::Instant;

    #[derive(Debug)]
    pub(crate) struct Bell(Mutex<bool>, Condvar);

    impl Bell {
        pub(crate) fn new() -> Self {
            Self(Mutex::new(false), Condvar::new())
        }

        pub(crate) fn ring(&self) {
            *lock(&self.0) = true;
            self.1.notify_one();
        }

        pub(crate) fn wait(&self, _: Option<Instant>) -> bool {
            let mut rung = lock(&self.0);
            while !*rung {
                rung = wait(&self.1, rung);
            }
            *rung = false;
            true
        }
    }
}
