//! One key of the server, as it must behave when it does one request at a time.

use std::rc::Rc;

use super::history::{Action, Answer, Outcome};

/// The value of a key; `None`: there is none.
pub type Value = Option<Rc<str>>;

/// What a request does to the value, and what it is answered.
#[must_use]
pub fn step(value: &Value, action: &Action) -> (Value, Answer) {
    match action {
        Action::Get => (
            value.clone(),
            Answer::Value(value.as_deref().map(str::to_owned)),
        ),
        Action::Set(text) => (Some(text.as_str().into()), Answer::Done),
        Action::Incr => match value.as_deref().unwrap_or("0").parse::<i64>() {
            Ok(number) if number < i64::MAX => {
                let next = number + 1;
                (Some(next.to_string().into()), Answer::Number(next))
            }
            _ => (value.clone(), Answer::Refused),
        },
        Action::Append(text) => {
            let joined = format!("{}{text}", value.as_deref().unwrap_or(""));
            let length = i64::try_from(joined.len()).unwrap_or(i64::MAX);
            (Some(joined.into()), Answer::Number(length))
        }
    }
}

/// Whether a request that ended so can have been answered this.
#[must_use]
pub fn fits(outcome: &Outcome, computed: &Answer) -> bool {
    match outcome {
        Outcome::Answered { answer, .. } => answer == computed,
        Outcome::Unknown => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(actions: &[Action]) -> Vec<Answer> {
        let mut value = None;
        let mut answers = Vec::new();
        for action in actions {
            let (next, answer) = step(&value, action);
            value = next;
            answers.push(answer);
        }
        answers
    }

    #[test]
    fn a_key_behaves_as_redis_does() {
        let text = |text: &str| text.to_owned();
        let answers = run(&[
            Action::Get,
            Action::Incr,
            Action::Append(text("2")),
            Action::Incr,
            Action::Get,
            Action::Set(text("x")),
            Action::Incr,
            Action::Append(text("yz")),
            Action::Get,
        ]);
        let expected = [
            Answer::Value(None),
            Answer::Number(1),
            Answer::Number(2),
            Answer::Number(13),
            Answer::Value(Some(text("13"))),
            Answer::Done,
            Answer::Refused,
            Answer::Number(3),
            Answer::Value(Some(text("xyz"))),
        ];
        assert_eq!(answers, expected);
    }
}
