//! Waiting for a reactor's answer: a place for one value, and a deadline. The reactor sends without waiting; when
//! nobody listens any more, its answer goes nowhere.

use super::backend::{Failure, Outcome};
use std::fmt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long a reactor may take to answer: a device that doesn't answer is given up after as long.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where one answer goes. It travels to the reactor in a message.
pub struct Reply<T>(SyncSender<T>);

impl<T> Reply<T> {
    /// Answers. Never waits: the place for it is there.
    pub fn send(self, answer: T) {
        // An error means that the asker has given up.
        let _ = self.0.try_send(answer);
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// The mailbox takes no message: the reactor is stuck, or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTaken;

/// Posts a question and waits for its answer, for at most `limit`. `who` is named when none comes.
///
/// # Errors
/// [`Failure::Unanswered`] if the question wasn't taken, was dropped, or not answered in time.
pub fn wait_one<T>(
    who: &str,
    limit: Duration,
    post: impl FnOnce(Reply<T>) -> Result<(), NotTaken>,
) -> Outcome<T> {
    let mut post = Some(post);
    let mut answers =
        wait_all(1, limit, |_| who.to_owned(), |_, reply| post.take().map_or(Ok(()), |post| post(reply)))?;
    answers.pop().ok_or_else(|| Failure::Unanswered(who.to_owned()))
}

/// Posts a question to each of `count` and waits for all their answers, for at most `limit` altogether. The answers
/// come in the order of the asked. `who` names one that stays silent.
///
/// # Errors
/// As [`wait_one`]: the others may have done it.
pub fn wait_all<T>(
    count: usize,
    limit: Duration,
    who: impl Fn(usize) -> String,
    mut post: impl FnMut(usize, Reply<T>) -> Result<(), NotTaken>,
) -> Outcome<Vec<T>> {
    let until = Instant::now() + limit;
    let mut waiting = Vec::with_capacity(count);
    for index in 0..count {
        let (sender, receiver) = sync_channel(1);
        post(index, Reply(sender)).map_err(|NotTaken| Failure::Unanswered(who(index)))?;
        waiting.push(receiver);
    }
    let take = |(index, receiver): (usize, std::sync::mpsc::Receiver<T>)| {
        let left = until.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).map_err(|_| Failure::Unanswered(who(index)))
    };
    waiting.into_iter().enumerate().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    /// Goal: an answer comes through, also from another thread, and several come in the order of the asked.
    #[test]
    fn answers_come_through() {
        let answer = wait_one("core 0", LONG, |reply| {
            std::thread::spawn(move || reply.send(7));
            Ok(())
        });
        assert_eq!(answer, Ok(7));
        let mut late = Vec::new();
        let answers = wait_all(
            3,
            LONG,
            |core| format!("core {core}"),
            |core, reply| {
                late.push((core, reply));
                if core == 2 {
                    late.drain(..).rev().for_each(|(core, reply)| reply.send(core * 10));
                }
                Ok(())
            },
        );
        assert_eq!(answers, Ok(vec![0, 10, 20]));
    }

    /// Goal: silence ends, whatever its reason, and is laid to whom it belongs. Method: a question kept, one dropped,
    /// one not taken; then an answer that comes too late.
    #[test]
    fn silence_ends() {
        let mut kept = None;
        let silent = |who: &str| Err::<(), _>(Failure::Unanswered(who.to_owned()));
        let keep = |reply| {
            kept = Some(reply);
            Ok(())
        };
        assert_eq!(wait_one("core 1", SHORT, keep), silent("core 1"));
        kept.take().unwrap().send(());
        assert_eq!(wait_one("core 2", LONG, |_| Ok(())), silent("core 2"));
        assert_eq!(wait_one("core 3", LONG, |_| Err(NotTaken)), silent("core 3"));
        let mut kept = Vec::new();
        let all = wait_all(
            2,
            SHORT,
            |core| format!("core {core}"),
            |core, reply| {
                if core == 0 {
                    reply.send(());
                } else {
                    kept.push(reply);
                }
                Ok(())
            },
        );
        assert_eq!(all, Err(Failure::Unanswered("core 1".to_owned())));
    }
}
