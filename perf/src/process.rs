//! Processes that are measured: started with their exact command line kept, paused and resumed
//! between samples, killed when their owner goes, whichever way.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;

/// How much of what a process said is shown when it fails.
const TAIL_BYTES: usize = 1500;
/// A process that does not stop for so long hangs in the kernel.
const PAUSE_PATIENCE: Duration = Duration::from_secs(2);
/// What a process said just before is on its way through a pipe and a thread.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(100);
const POLL_EVERY: Duration = Duration::from_millis(2);

/// A running process and what it says.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// What was said and not yet looked at.
    unread: String,
    /// The end of what was said before.
    tail: String,
    command: String,
}

impl Process {
    /// Starts it. It gets SIGKILL when this program dies, however it dies.
    pub fn start(program: &str, arguments: &[String]) -> Result<Self> {
        let line = command_line(program, arguments);
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: between fork and exec only prctl and dup2 are called, both async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                nix::unistd::dup2_stderr(std::io::stdout())?;
                Ok(())
            });
        }
        let mut child = command.spawn().with_context(|| format!("start {line}"))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut stdout = stdout;
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            output,
            unread: String::new(),
            tail: String::new(),
            command: line,
        })
    }

    /// The exact command line.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line to its standard input.
    pub fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}")
            .and_then(|()| self.stdin.flush())
            .with_context(|| format!("say {line:?} to {}{}", self.command, self.last_words()))
    }

    /// Waits until it says `what`; returns what it said up to there.
    pub fn expect(&mut self, what: &str, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            if let Some(at) = self.unread.find(what) {
                let rest = self.unread.split_off(at + what.len());
                let said = std::mem::replace(&mut self.unread, rest);
                self.remember(&said);
                return Ok(said);
            }
            self.listen(end, what)?;
        }
    }

    /// Waits until a file is there (a socket that it listens on).
    pub fn expect_file(&mut self, path: &Path, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while !path.exists() {
            interrupt::check()?;
            if Instant::now() >= end || self.is_dead() {
                let file = path.display();
                while let Ok(bytes) = self.output.recv_timeout(LAST_WORDS_PATIENCE) {
                    self.unread.push_str(&String::from_utf8_lossy(&bytes));
                }
                bail!("{} did not make {file}{}", self.command, self.last_words());
            }
            std::thread::sleep(POLL_EVERY);
        }
        Ok(())
    }

    /// Stops all its threads where they are; returns when they stand.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let stat = format!("/proc/{}/stat", self.id());
        let end = Instant::now() + PAUSE_PATIENCE;
        loop {
            let text = std::fs::read_to_string(&stat).unwrap_or_default();
            match state(&text) {
                Some('T') => return Ok(()),
                None | Some('Z' | 'X') => {
                    bail!("{} is dead{}", self.command, self.last_words())
                }
                Some(_) if Instant::now() >= end => bail!("{} does not stop", self.command),
                Some(_) => std::thread::sleep(POLL_EVERY),
            }
        }
    }

    /// Lets it run on.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Asks it to end (SIGTERM), waits, and returns all that it has said since the last look.
    pub fn finish(&mut self, patience: Duration) -> Result<String> {
        self.signal(Signal::SIGTERM)?;
        let end = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() >= end {
                bail!("{} does not end{}", self.command, self.last_words());
            }
            std::thread::sleep(POLL_EVERY);
        }
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(200)) {
            self.unread.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok(std::mem::take(&mut self.unread))
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.is_dead() {
            bail!("{} is dead{}", self.command, self.last_words());
        }
        // Not reaped yet, so the id is still its own.
        kill(Pid::from_raw(self.id().cast_signed()), signal)
            .with_context(|| format!("send {signal} to {}", self.command))
    }

    fn is_dead(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn listen(&mut self, end: Instant, what: &str) -> Result<()> {
        interrupt::check()?;
        let slice = Duration::from_millis(100);
        match self.output.recv_timeout(slice) {
            Ok(bytes) => self.unread.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(_) => bail!("{} did not say {what:?}{}", self.command, self.last_words()),
        }
        Ok(())
    }

    fn remember(&mut self, said: &str) {
        self.tail.push_str(said);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        let cut = self.tail.ceil_char_boundary(surplus);
        self.tail.drain(..cut);
    }

    fn last_words(&self) -> String {
        format!("; its last words:\n{}{}", self.tail, self.unread)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither can fail but for a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The letter of the process state in /proc/PID/stat, after the name in parentheses.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A command line that a shell would take.
fn command_line(program: &str, arguments: &[String]) -> String {
    let mut line = program.to_owned();
    for argument in arguments {
        line.push(' ');
        if argument.contains(|c: char| c.is_whitespace() || "'\"$;&|()".contains(c)) {
            line.push_str(&format!("'{}'", argument.replace('\'', "'\\''")));
        } else {
            line.push_str(argument);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn cat() -> Process {
        Process::start("cat", &[]).expect("cat starts")
    }

    #[test]
    fn what_is_said_is_heard_up_to_the_word() {
        let mut cat = cat();
        cat.say("one two").expect("said");
        assert_eq!(cat.expect("one", PATIENCE).expect("heard"), "one");
        assert_eq!(cat.expect("two\n", PATIENCE).expect("heard"), " two\n");
    }

    #[test]
    fn silence_ends_with_the_last_words() {
        let mut cat = cat();
        cat.say("only this").expect("said");
        let error = cat
            .expect("something else", Duration::from_millis(300))
            .expect_err("never said");
        assert!(error.to_string().contains("only this"), "{error}");
    }

    #[test]
    fn paused_and_resumed() {
        let mut cat = cat();
        cat.pause().expect("stands");
        cat.say("late").expect("said");
        assert!(cat.expect("late", Duration::from_millis(200)).is_err());
        cat.resume().expect("runs");
        assert!(cat.expect("late", PATIENCE).is_ok());
    }

    #[test]
    fn the_dead_are_reported() {
        let script = ["-c".to_owned(), "echo farewell".to_owned()];
        let mut gone = Process::start("sh", &script).expect("starts");
        while !gone.is_dead() {
            std::thread::sleep(POLL_EVERY);
        }
        assert!(gone.pause().is_err());
        let error = gone.expect_file(Path::new("/no/such"), PATIENCE);
        let error = error.expect_err("there is no such file");
        assert!(error.to_string().contains("farewell"), "{error}");
    }

    #[test]
    fn dropped_is_killed() {
        let cat = cat();
        let folder = format!("/proc/{}", cat.id());
        drop(cat);
        assert!(!Path::new(&folder).exists());
    }

    #[test]
    fn state_and_command_line_are_read_and_quoted() {
        assert_eq!(state("12 (a) b) T 1 2"), Some('T'));
        assert_eq!(state("nonsense"), None);
        let arguments = ["a b".to_owned(), "c".to_owned()];
        assert_eq!(command_line("x", &arguments), "x 'a b' c");
    }
}
