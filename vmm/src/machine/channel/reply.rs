//! Replies out of the stream of bytes that comes from the guest: `ok LEN\n` or `err LEN\n`, then LEN bytes.
//!
//! Pure, and bounded: the guest decides what comes, not how much is kept.

/// The longest body of a reply, in bytes: a line for each block of a region of 512 GiB in blocks of 2 MiB.
pub(super) const MAX_BODY: usize = 16 << 20;
/// The longest header, in bytes, without its newline.
const MAX_HEADER: usize = 24;

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    /// Whether it was `ok`.
    pub(super) ok: bool,
    /// What followed.
    pub(super) body: Vec<u8>,
}

/// Something that is no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoReply(pub(super) String);

/// Takes bytes until they are a reply.
#[derive(Debug, Default)]
pub(super) struct ReplyReader {
    header: Vec<u8>,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    ok: bool,
    length: usize,
    bytes: Vec<u8>,
}

impl ReplyReader {
    /// Takes bytes off the front of `input`, up to the end of a reply or of a line that is none.
    pub(super) fn feed(&mut self, input: &mut &[u8]) -> Option<Result<Reply, NoReply>> {
        while !input.is_empty() || self.body.as_ref().is_some_and(|body| body.length == 0) {
            match &mut self.body {
                Some(body) => {
                    let wanted = (body.length - body.bytes.len()).min(input.len());
                    let (taken, rest) = input.split_at(wanted);
                    body.bytes.extend_from_slice(taken);
                    *input = rest;
                    if body.bytes.len() == body.length {
                        return self.body.take().map(|body| {
                            Ok(Reply {
                                ok: body.ok,
                                body: body.bytes,
                            })
                        });
                    }
                }
                None => match self.feed_header(input) {
                    Some(Ok(body)) => self.body = Some(body),
                    Some(Err(none)) => return Some(Err(none)),
                    None => {}
                },
            }
        }
        None
    }

    fn feed_header(&mut self, input: &mut &[u8]) -> Option<Result<Body, NoReply>> {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        if byte != b'\n' {
            // Beyond the limit only the fact counts that the line is no header.
            if self.header.len() <= MAX_HEADER {
                self.header.push(byte);
            }
            return None;
        }
        let header = std::mem::take(&mut self.header);
        Some(parse_header(&header))
    }
}

fn parse_header(header: &[u8]) -> Result<Body, NoReply> {
    let bad = |why: &str| {
        let text: String = header
            .iter()
            .take(MAX_HEADER)
            .map(|byte| char::from(*byte))
            .collect();
        NoReply(format!("header {text:?}: {why}"))
    };
    let form = "it must be \"ok\" or \"err\", a space, and a length in decimal";
    let text = std::str::from_utf8(header).map_err(|_| bad(form))?;
    let (word, length) = text.split_once(' ').ok_or_else(|| bad(form))?;
    let ok = match word {
        "ok" => true,
        "err" => false,
        _ => return Err(bad(form)),
    };
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad(form));
    }
    match length.parse::<usize>() {
        Ok(length) if length <= MAX_BODY => Ok(Body {
            ok,
            length,
            bytes: Vec::new(),
        }),
        _ => Err(bad("the length is above 16 MiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(pieces: &[&[u8]]) -> Vec<Result<Reply, NoReply>> {
        let mut reader = ReplyReader::default();
        let mut replies = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(reply) = reader.feed(&mut input) {
                replies.push(reply);
            }
            assert!(input.is_empty());
        }
        replies
    }

    fn ok(body: &[u8]) -> Result<Reply, NoReply> {
        Ok(Reply {
            ok: true,
            body: body.to_vec(),
        })
    }

    #[test]
    fn replies_are_read_however_they_are_cut() {
        let stream = b"ok 5\na\nb\ncerr 0\nok 2\nhi";
        let whole = read_all(&[stream]);
        assert_eq!(whole[0], ok(b"a\nb\nc"));
        assert_eq!(
            whole[1],
            Ok(Reply {
                ok: false,
                body: Vec::new()
            })
        );
        assert_eq!(whole[2], ok(b"hi"));
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read_all(&single), whole);
    }

    #[test]
    fn a_line_that_is_no_header_is_named_and_the_next_is_read() {
        let replies = read_all(&[b"Debian login: \nok 1\nx"]);
        assert!(
            replies[0]
                .as_ref()
                .is_err_and(|none| none.0.starts_with("header \"Debian login: \""))
        );
        assert_eq!(replies[1], ok(b"x"));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        for header in [
            "ok 16777217\n",
            "ok 99999999999999999999\n",
            "ok -1\n",
            "ok +1\n",
            "ok \n",
            "ok\n",
        ] {
            assert!(read_all(&[header.as_bytes()])[0].is_err(), "{header}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_and_little_is_kept(stream: Vec<u8>) {
            let mut reader = ReplyReader::default();
            let mut input = stream.as_slice();
            while reader.feed(&mut input).is_some() {}
            prop_assert!(input.is_empty());
            prop_assert!(reader.header.len() <= MAX_HEADER + 1);
        }
    }
}
