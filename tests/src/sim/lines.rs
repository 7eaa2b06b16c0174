//! The lines between cores, as `reactor/src/mesh.rs` has them: a request of each class needs a credit, an answer brings it
//! back; between two cores they arrive as they were sent, but answers pass requests that wait. When one arrives is the
//! world's to say.

use reactor::Core;
use std::collections::VecDeque;

/// What is answered in its own class, with credits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Requests for data, and what must not pass them.
    Ordinary,
    /// What must get through while those are stuck.
    Urgent,
}

/// What arrives.
#[derive(Debug)]
pub struct Arrival<M> {
    /// From whom.
    pub from: usize,
    /// To whom.
    pub to: usize,
    /// Of which class.
    pub class: Class,
    /// It answers one that went the other way.
    pub reply: bool,
    /// What.
    pub mail: M,
}

#[derive(Debug)]
struct Account<M> {
    /// Requests without a credit.
    waiting: VecDeque<M>,
    credits: u32,
    /// Requests from there that were not answered.
    owed: u32,
}

#[derive(Debug)]
struct Line<M> {
    ready: VecDeque<(Class, bool, M)>,
    accounts: [Account<M>; 2],
}

/// All of them; that from core `f` to core `t` is at `f * cores + t`.
#[derive(Debug)]
pub struct Lines<M> {
    cores: usize,
    lines: Vec<Line<M>>,
}

impl<M> Lines<M> {
    /// Between so many cores, with so many ordinary and urgent credits for each way.
    pub fn new(cores: usize, credits: [u32; 2]) -> Lines<M> {
        let account = |credits| Account { waiting: VecDeque::new(), credits, owed: 0 };
        let line = || Line { ready: VecDeque::new(), accounts: credits.map(account) };
        Lines { cores, lines: std::iter::repeat_with(line).take(cores * cores).collect() }
    }

    /// How many ways there are.
    pub fn ways(&self) -> usize {
        self.lines.len()
    }

    /// What could arrive from a way.
    pub fn ready(&self, way: usize) -> usize {
        self.lines[way].ready.len()
    }

    /// Asks for something. Whether that waits for a credit.
    pub fn request(&mut self, from: Core, to: Core, class: Class, mail: M) -> bool {
        let line = &mut self.lines[from.index() * self.cores + to.index()];
        let account = &mut line.accounts[class as usize];
        if account.credits == 0 {
            account.waiting.push_back(mail);
            return true;
        }
        account.credits -= 1;
        line.ready.push_back((class, false, mail));
        false
    }

    /// Answers a request.
    ///
    /// # Panics
    /// If nobody has asked.
    pub fn reply(&mut self, from: Core, to: Core, class: Class, mail: M) {
        let line = &mut self.lines[from.index() * self.cores + to.index()];
        let account = &mut line.accounts[class as usize];
        assert!(account.owed > 0, "core {} answers what nobody asked", from.0);
        account.owed -= 1;
        line.ready.push_back((class, true, mail));
    }

    /// The next one of a way arrives.
    pub fn take(&mut self, way: usize) -> Option<Arrival<M>> {
        let (class, reply, mail) = self.lines[way].ready.pop_front()?;
        let (from, to) = (way / self.cores, way % self.cores);
        let back = &mut self.lines[to * self.cores + from];
        let account = &mut back.accounts[class as usize];
        if !reply {
            account.owed += 1;
        } else if let Some(waiting) = account.waiting.pop_front() {
            back.ready.push_back((class, false, waiting));
        } else {
            account.credits += 1;
        }
        Some(Arrival { from, to, class, reply, mail })
    }

    /// Nothing is under way or waits.
    pub fn is_idle(&self) -> bool {
        let idle = |line: &Line<M>| {
            line.ready.is_empty() && line.accounts.iter().all(|account| account.waiting.is_empty())
        };
        self.lines.iter().all(idle)
    }

    /// Who has not answered whom, and how many requests.
    pub fn owed(&self) -> Option<(usize, usize, u32)> {
        self.lines.iter().enumerate().find_map(|(way, line)| {
            let owed: u32 = line.accounts.iter().map(|account| account.owed).sum();
            (owed > 0).then_some((way / self.cores, way % self.cores, owed))
        })
    }
}
