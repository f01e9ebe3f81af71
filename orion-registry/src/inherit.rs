//! Taking over from a base entry what an entry leaves unset.

/// Fills what is unset from `base`.
pub(crate) trait Inherit {
    fn inherit(&mut self, base: &Self);
}

impl<T: Clone> Inherit for Option<T> {
    fn inherit(&mut self, base: &Self) {
        if self.is_none() {
            self.clone_from(base);
        }
    }
}

impl<T: Clone> Inherit for Vec<T> {
    fn inherit(&mut self, base: &Self) {
        if self.is_empty() {
            self.clone_from(base);
        }
    }
}

macro_rules! inherit_fields {
    ($into:expr, $base:expr; $($field:ident),* $(,)?) => { $($crate::inherit::Inherit::inherit(&mut $into.$field, &$base.$field);)* };
}
pub(crate) use inherit_fields;
