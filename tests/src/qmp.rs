//! QEMU's machine protocol: JSON lines over a unix socket, as much of it as the tests and benches need.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to make its socket.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection.
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to a QEMU that may be just starting.
    ///
    /// # Errors
    /// There is no socket, or it does not greet.
    pub fn connect(socket: &Path) -> Result<Qmp, Box<dyn Error>> {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut qmp = Qmp {
            lines: BufReader::new(stream),
        };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            return Err(format!("not a greeting: {greeting}").into());
        }
        qmp.order("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Gives an order and answers what it returns; events in between are passed over.
    ///
    /// # Errors
    /// QEMU refuses, or is gone.
    pub fn order(&mut self, command: &str, arguments: &Value) -> Result<Value, Box<dyn Error>> {
        let order = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{order}")?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}").into());
            }
        }
    }

    fn line(&mut self) -> Result<Value, Box<dyn Error>> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err("QEMU has closed its socket".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
