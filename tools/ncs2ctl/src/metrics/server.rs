//! A listener and one thread: `GET /metrics` gives the text, one connection at a time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ncs2::{ErrorKind, Fleet};

use super::text::Page;
use crate::failure::{Failure, Result};

/// A client that takes longer is left alone.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest head of a request.
const MAX_HEAD_BYTES: usize = 8 << 10;

/// Takes the address. One that other computers reach needs `public`: figures, names and sticks would be theirs to read.
pub fn listen(address: SocketAddr, public: bool) -> Result<TcpListener> {
    if !address.ip().is_loopback() && !public {
        return Err(Failure::usage(
            format!(
                "--metrics-listen {address}: expected an address of this computer alone, such as 127.0.0.1"
            ),
            "add --metrics-public to let other computers read the metrics",
        ));
    }
    TcpListener::bind(address).map_err(|e| {
        let flag = format!("--metrics-listen {address}");
        match e.kind() {
            io::ErrorKind::AddrInUse => Failure::new(
                ErrorKind::InUse,
                format!("{flag}: another program listens there"),
                "name another port, or 0 for a free one",
            ),
            io::ErrorKind::PermissionDenied => Failure::new(
                ErrorKind::Permission,
                format!("{flag}: this port is not for ordinary users"),
                "name a port from 1024 on",
            ),
            _ => Failure::new(
                ErrorKind::InvalidInput,
                format!("{flag}: {e}"),
                "name an address that this computer has",
            ),
        }
    })
}

/// Serves until it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the fleet's figures.
    pub fn start(listener: TcpListener, fleet: Fleet) -> Result<Self> {
        let failed = |e: io::Error| {
            Failure::new(
                ErrorKind::OutOfMemory,
                format!("metrics: {e}"),
                "raise the limits of files and threads",
            )
        };
        let address = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut page = Page::new(fleet);
            for client in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                // A client that went away, or never spoke, is nobody's error.
                if let Ok(client) = client {
                    let _ = answer(client, &mut page);
                }
            }
        };
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(serve).map_err(failed)?;
        Ok(Server { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which looks at the flag. Where even that fails it ends with the process.
        let mut own = self.address;
        if own.ip().is_unspecified() {
            own.set_ip(if own.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        if TcpStream::connect_timeout(&own, PATIENCE).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn answer(mut client: TcpStream, page: &mut Page) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::with_capacity(1024);
    let mut piece = [0; 1024];
    let began = std::time::Instant::now();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = client.read(&mut piece)?;
        head.extend_from_slice(&piece[..n]);
        // A client that sends byte after byte must not hold the thread for ever.
        if n == 0 || head.len() > MAX_HEAD_BYTES || began.elapsed() > PATIENCE {
            return Ok(());
        }
    }
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|&b| b == b'?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK", page.render()),
        (b"GET" | b"HEAD", _) => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    )?;
    if method != b"HEAD" {
        client.write_all(body.as_bytes())?;
    }
    client.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_computers_need_consent() {
        let public: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        let Err(Failure::Report(report)) = listen(public, false) else { panic!("it listens") };
        assert_eq!(report.exit, 64);
        assert!(report.hint.contains("--metrics-public"), "{}", report.hint);
        assert!(listen(public, true).is_ok());
    }

    #[test]
    fn a_taken_port_is_said_so() {
        let first = listen("127.0.0.1:0".parse().expect("an address"), false).expect("a free port");
        let Err(Failure::Report(report)) = listen(first.local_addr().expect("bound"), false) else {
            panic!("two listen there")
        };
        assert_eq!((report.kind, report.exit), ("InUse", 2));
        assert!(report.message.contains(&first.local_addr().expect("bound").to_string()));
    }
}
