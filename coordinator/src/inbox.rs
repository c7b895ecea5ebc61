//! What waits for a turn. Words of agents, and questions, go before what is to be changed, and a request that reads rows of the store has
//! a batch of its own, between one that is durable and the next words. So however many of those wait, and however slow the disk is, no
//! agent seems silent whose word is here already.

use std::collections::VecDeque;

/// Of each kind in one transaction: more would only lengthen the wait of the first.
pub const BATCH: usize = 256;

/// Two queues, each in its order.
#[derive(Debug)]
pub struct Inbox<T> {
    words: VecDeque<T>,
    requests: VecDeque<T>,
    /// What was before the first request is durable.
    is_its_turn: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self { words: VecDeque::new(), requests: VecDeque::new(), is_its_turn: false }
    }
}

impl<T> Inbox<T> {
    /// Something that an agent said, or a question.
    pub fn word(&mut self, word: T) {
        self.words.push_back(word);
    }

    /// Something that is to be changed.
    pub fn request(&mut self, request: T) {
        self.requests.push_back(request);
    }

    /// How many words wait, and how many requests.
    pub fn len(&self) -> (usize, usize) {
        (self.words.len(), self.requests.len())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// What goes into the next transaction.
    pub fn next(&mut self, reads_rows: impl Fn(&T) -> bool) -> Vec<T> {
        let reads = self.requests.front().is_some_and(&reads_rows);
        if reads && (self.words.is_empty() || self.is_its_turn) {
            self.is_its_turn = false;
            return self.requests.pop_front().into_iter().collect();
        }
        self.is_its_turn = reads;
        let asked = self.requests.iter().take(BATCH).take_while(|request| !reads_rows(request)).count();
        let said = self.words.len().min(BATCH);
        self.words.drain(..said).chain(self.requests.drain(..asked)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words are small, requests are from 1,000 on, and those that read rows are odd.
    fn inbox(words: impl IntoIterator<Item = u32>, requests: impl IntoIterator<Item = u32>) -> Inbox<u32> {
        let mut inbox = Inbox::default();
        words.into_iter().for_each(|word| inbox.word(word));
        requests.into_iter().for_each(|request| inbox.request(request));
        inbox
    }

    fn next(inbox: &mut Inbox<u32>) -> Vec<u32> {
        inbox.next(|request| request % 2 == 1)
    }

    #[test]
    fn what_reads_rows_is_alone_after_what_came_before_it() {
        let mut inbox = inbox([1, 3], [1_000, 1_002, 1_003, 1_004]);
        assert_eq!(next(&mut inbox), [1, 3, 1_000, 1_002]);
        assert_eq!(next(&mut inbox), [1_003]);
        assert_eq!(next(&mut inbox), [1_004]);
        assert!(inbox.is_empty() && next(&mut inbox).is_empty());
    }

    #[test]
    fn words_and_what_reads_rows_take_turns_while_there_are_both() {
        let mut inbox = inbox([], (0..300).map(|n| 1_001 + 2 * n));
        let mut order = vec![];
        for word in 0..300 {
            inbox.word(word);
            order.extend(next(&mut inbox));
        }
        let both = (0..150).flat_map(|n| [if n == 0 { vec![0] } else { vec![2 * n - 1, 2 * n] }, vec![1_001 + 2 * n]]);
        assert_eq!(order, both.flatten().collect::<Vec<_>>());
        assert_eq!(inbox.len(), (1, 150));
    }

    #[test]
    fn a_transaction_has_its_bounds() {
        let mut inbox = inbox(0..300, (0..300).map(|n| 1_000 + 2 * n));
        assert_eq!(next(&mut inbox).len(), 2 * BATCH);
        assert_eq!(next(&mut inbox).len(), 2 * (300 - BATCH));
    }
}
