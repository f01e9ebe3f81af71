//! Pages of keys and values: who holds which, and which prompt they belong to.
//!
//! A page holds [`PAGE_TOKENS`] positions. Full pages are remembered by the tokens that lead to them, so a prompt that
//! begins like an earlier one takes over its pages (with their exact bits) instead of computing them again. Pages that
//! nobody holds stay remembered until their room is needed, the least recently used first.

use std::collections::HashMap;

use orion_core::{Error, ErrorKind, Result, TokenId};

/// Positions per page.
pub(crate) const PAGE_TOKENS: usize = 64;

/// The tokens of one page behind a given earlier page: exact, so that no collision can mix two prompts up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Serial of the page before, 0 at the start.
    parent: u64,
    /// Longrope's choice changes what keys are.
    long: bool,
    tokens: Box<[TokenId]>,
}

#[derive(Debug, Default)]
struct Page {
    holders: u32,
    /// Names the content for as long as it is remembered; 0 if it is not.
    serial: u64,
    key: Option<Key>,
    last_used: u64,
    /// Its content is on its way to the disk, or came from there.
    kept: bool,
}

/// Hands out pages.
#[derive(Debug)]
pub(crate) struct PagePool {
    pages: Vec<Page>,
    limit: usize,
    remembered: HashMap<Key, u32>,
    clock: u64,
    serials: u64,
}

impl PagePool {
    pub(crate) fn new(limit: usize) -> Self {
        Self { pages: Vec::new(), limit, remembered: HashMap::new(), clock: 0, serials: 0 }
    }

    /// Pages handed out at least once; the executor keeps room for these.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// A free page: never used, or forgotten, or the least recently used one that nobody holds.
    pub(crate) fn take(&mut self) -> Result<u32> {
        let free = self.pages.iter().position(|page| page.holders == 0 && page.serial == 0);
        let index = match free {
            Some(index) => index,
            None if self.pages.len() < self.limit => {
                self.pages.push(Page::default());
                self.pages.len() - 1
            }
            None => {
                let idle = self.pages.iter().enumerate().filter(|(_, page)| page.holders == 0);
                // Of pages used last at the same time the deepest goes first: its parents are useful without it.
                let oldest = idle.min_by_key(|(_, page)| (page.last_used, std::cmp::Reverse(page.serial)));
                let (index, _) = oldest.ok_or_else(|| {
                    Error::new(
                        ErrorKind::OutOfMemory,
                        format!("all {} pages of keys and values are in use", self.limit),
                    )
                })?;
                self.forget(index);
                index
            }
        };
        self.pages[index].holders = 1;
        Ok(u32::try_from(index).expect("the page limit fits u32"))
    }

    fn forget(&mut self, index: usize) {
        let page = &mut self.pages[index];
        page.serial = 0;
        page.kept = false;
        if let Some(key) = page.key.take() {
            self.remembered.remove(&key);
        }
    }

    /// Gives pages back. What they remember stays until the room is needed.
    pub(crate) fn release(&mut self, pages: &[u32]) {
        self.clock += 1;
        for &index in pages {
            let page = &mut self.pages[index as usize];
            page.holders = page.holders.checked_sub(1).expect("only held pages are released");
            page.last_used = self.clock;
        }
    }

    /// Takes hold of the remembered pages that `tokens` begins with. At least one token is left to compute, for its
    /// logits.
    pub(crate) fn lookup(&mut self, tokens: &[TokenId], long: bool) -> Vec<u32> {
        let mut found = Vec::new();
        let mut parent = 0;
        let whole = tokens.len().saturating_sub(1) / PAGE_TOKENS;
        for chunk in tokens.chunks_exact(PAGE_TOKENS).take(whole) {
            let key = Key { parent, long, tokens: chunk.into() };
            let Some(&index) = self.remembered.get(&key) else { break };
            let page = &mut self.pages[index as usize];
            page.holders += 1;
            parent = page.serial;
            found.push(index);
        }
        found
    }

    /// Remembers the full pages of a sequence whose first `tokens.len()` positions are computed. Pages that hold what
    /// another page is already remembered for stay private.
    pub(crate) fn remember(&mut self, tokens: &[TokenId], pages: &[u32], long: bool) {
        let mut parent = 0;
        for (chunk, &index) in tokens.chunks_exact(PAGE_TOKENS).zip(pages) {
            let key = Key { parent, long, tokens: chunk.into() };
            if let Some(&known) = self.remembered.get(&key) {
                parent = self.pages[known as usize].serial;
                continue;
            }
            let page = &mut self.pages[index as usize];
            if page.serial != 0 {
                // Remembered under a parent that is forgotten: unreachable from here on, so nothing further is added.
                break;
            }
            self.serials += 1;
            page.serial = self.serials;
            page.key = Some(key.clone());
            parent = page.serial;
            self.remembered.insert(key, index);
        }
    }

    /// Whether a page's content is on disk, or on its way there.
    pub(crate) fn is_kept(&self, page: u32) -> bool {
        self.pages[page as usize].kept
    }

    /// A page's content is on disk, or on its way there.
    pub(crate) fn keep(&mut self, page: u32) {
        self.pages[page as usize].kept = true;
    }

    /// Forgets everything nobody holds and lets nobody find the rest.
    pub(crate) fn clear(&mut self) {
        for index in 0..self.pages.len() {
            self.forget(index);
        }
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.pages.iter().filter(|page| page.holders > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    fn store(pool: &mut PagePool, tokens: &[TokenId]) -> Vec<u32> {
        let mut pages = pool.lookup(tokens, false);
        while pages.len() * PAGE_TOKENS < tokens.len() {
            pages.push(pool.take().unwrap());
        }
        pool.remember(tokens, &pages, false);
        pages
    }

    #[test]
    fn a_longer_prompt_takes_over_the_full_pages_of_a_shorter_one() {
        let mut pool = PagePool::new(16);
        let first = store(&mut pool, &tokens(0..150));
        pool.release(&first);
        let again = pool.lookup(&tokens(0..200), false);
        assert_eq!(again, first[..2]);
        assert!(pool.lookup(&tokens(1..200), false).is_empty());
        assert!(pool.lookup(&tokens(0..200), true).is_empty());
        pool.release(&again);
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn at_least_one_token_is_left_to_compute() {
        let mut pool = PagePool::new(16);
        let pages = store(&mut pool, &tokens(0..128));
        pool.release(&pages);
        assert_eq!(pool.lookup(&tokens(0..128), false).len(), 1);
    }

    #[test]
    fn held_pages_are_never_handed_out_and_a_full_pool_is_an_error() {
        let mut pool = PagePool::new(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(a, b);
        assert_eq!(pool.take().unwrap_err().kind(), ErrorKind::OutOfMemory);
        pool.release(&[a]);
        assert_eq!(pool.take().unwrap(), a);
    }

    #[test]
    fn a_forgotten_page_is_not_found_again() {
        let mut pool = PagePool::new(2);
        let pages = store(&mut pool, &tokens(0..128));
        pool.release(&pages);
        let taken = [pool.take().unwrap(), pool.take().unwrap()];
        assert!(pool.lookup(&tokens(0..128), false).is_empty());
        pool.release(&taken);
    }

    proptest! {
        /// Whatever the order of work: a page found for a prefix is one that was stored for exactly that prefix.
        #[test]
        fn found_pages_hold_the_prefix(ops in prop::collection::vec((0u32..4, 1usize..5, any::<bool>()), 1..40)) {
            let mut pool = PagePool::new(8);
            let mut content: HashMap<u32, Vec<TokenId>> = HashMap::new();
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (family, pages, keep) in ops {
                let text: Vec<TokenId> = (0..pages * PAGE_TOKENS + 1)
                    .map(|i| TokenId(if i < PAGE_TOKENS { 0 } else { family })).collect();
                let mut mine = pool.lookup(&text, false);
                for (depth, page) in mine.iter().enumerate() {
                    prop_assert_eq!(&content[page], &text[..(depth + 1) * PAGE_TOKENS]);
                }
                while mine.len() < pages {
                    let Ok(page) = pool.take() else { break };
                    content.insert(page, text[..(mine.len() + 1) * PAGE_TOKENS].to_vec());
                    mine.push(page);
                }
                pool.remember(&text[..mine.len() * PAGE_TOKENS], &mine, false);
                if keep && held.is_empty() { held.push(mine) } else { pool.release(&mine) }
            }
            for pages in held { pool.release(&pages); }
            prop_assert_eq!(pool.held(), 0);
        }
    }
}
