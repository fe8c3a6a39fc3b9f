use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ncs2::transport::{Interest, Reactor, ReactorKind};
use rustix::event::{EventfdFlags, eventfd};

/// Runs the same test on both kinds; io_uring is left out, and said so, where the kernel refuses it.
fn on_both(test: impl Fn(&mut Reactor)) {
    let found = ReactorKind::detect();
    match found.why_not {
        None => test(&mut Reactor::new(ReactorKind::IoUring).expect("detected")),
        Some(why) => eprintln!("io_uring not tested: {why}"),
    }
    test(&mut Reactor::new(ReactorKind::Epoll).expect("epoll"));
}

fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd")
}

fn ring(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("written");
}

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn reports_each_change_once_and_only_the_right_token() {
    on_both(|reactor| {
        let (a, b) = (bell(), bell());
        let token_a = reactor.register(a.as_fd(), Interest::READ).expect("registered");
        let token_b = reactor.register(b.as_fd(), Interest::READ).expect("registered");
        let mut ready = Vec::new();
        reactor.turn(NOW, &mut ready).expect("turn");
        assert!(ready.is_empty());
        ring(&b);
        reactor.turn(None, &mut ready).expect("turn");
        assert_eq!(ready, [token_b]);
        reactor.turn(NOW, &mut ready).expect("turn");
        assert!(ready.is_empty(), "edge: still readable, not reported again ({:?})", reactor.kind());
        ring(&a);
        ring(&b);
        ring(&b);
        let mut seen = Vec::new();
        while seen.len() < 2 {
            reactor.turn(Some(Duration::from_secs(5)), &mut ready).expect("turn");
            assert!(!ready.is_empty(), "saw only {seen:?}");
            for &token in &ready {
                if !seen.contains(&token) {
                    seen.push(token);
                }
            }
        }
        seen.sort();
        assert_eq!(seen, [token_a, token_b]);
    });
}

#[test]
fn ready_before_registering_is_reported() {
    on_both(|reactor| {
        let fd = bell();
        ring(&fd);
        let token = reactor.register(fd.as_fd(), Interest::READ).expect("registered");
        let mut ready = Vec::new();
        reactor.turn(Some(Duration::from_secs(5)), &mut ready).expect("turn");
        assert_eq!(ready, [token]);
    });
}

#[test]
fn a_deregistered_token_is_silent_and_its_slot_serves_another() {
    on_both(|reactor| {
        let (a, b) = (bell(), bell());
        let old = reactor.register(a.as_fd(), Interest::READ).expect("registered");
        ring(&a); // An event on the way.
        reactor.deregister(old);
        reactor.deregister(old);
        let new = reactor.register(b.as_fd(), Interest::READ).expect("registered");
        assert_ne!(old, new);
        ring(&a);
        let mut ready = Vec::new();
        for _ in 0..3 {
            reactor.turn(NOW, &mut ready).expect("turn");
            assert!(ready.is_empty());
        }
        ring(&b);
        reactor.turn(Some(Duration::from_secs(5)), &mut ready).expect("turn");
        assert_eq!(ready, [new]);
    });
}

#[test]
fn the_deadline_ends_a_turn() {
    on_both(|reactor| {
        let mut ready = Vec::new();
        let start = Instant::now();
        let woken = reactor.turn(Some(Duration::from_millis(20)), &mut ready).expect("turn");
        assert!(!woken && ready.is_empty());
        assert!(start.elapsed() >= Duration::from_millis(19), "{:?}", start.elapsed());
    });
}

#[test]
fn a_wake_before_during_and_between_turns_is_never_lost() {
    on_both(|reactor| {
        let mut ready = Vec::new();
        let waker = reactor.waker();
        waker.wake();
        waker.wake();
        assert!(reactor.turn(None, &mut ready).expect("turn"), "woken before: does not block");
        assert!(!reactor.turn(NOW, &mut ready).expect("turn"), "two wakes are one");
        // From another thread: each message must be seen, however the two interleave.
        let (send, receive) = crossbeam_channel::unbounded();
        let thread = std::thread::spawn(move || {
            for n in 0..20_000u32 {
                send.send(n).expect("the reactor lives");
                waker.wake();
                if n % 7 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < 20_000 {
            for n in receive.try_iter() {
                assert_eq!(n, next);
                next += 1;
            }
            if next < 20_000 {
                let start = Instant::now();
                reactor.turn(Some(Duration::from_secs(20)), &mut ready).expect("turn");
                assert!(start.elapsed() < Duration::from_secs(10), "a wake was lost at {next}");
            }
        }
        thread.join().expect("sender");
    });
}

#[test]
fn interest_changes_take_effect() {
    on_both(|reactor| {
        let (near, far) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        near.set_nonblocking(true).expect("non-blocking");
        let token = reactor.register(near.as_fd(), Interest::READ).expect("registered");
        let mut ready = Vec::new();
        reactor.turn(NOW, &mut ready).expect("turn");
        assert!(ready.is_empty(), "nothing to read");
        reactor.set_interest(token, Interest { readable: true, writable: true }).expect("changed");
        reactor.turn(Some(Duration::from_secs(5)), &mut ready).expect("turn");
        assert_eq!(ready, [token], "writable already");
        reactor.set_interest(token, Interest::READ).expect("changed");
        reactor.turn(NOW, &mut ready).expect("turn");
        reactor.turn(NOW, &mut ready).expect("turn");
        assert!(ready.is_empty(), "writable is not asked for");
        drop(far);
        reactor.turn(Some(Duration::from_secs(5)), &mut ready).expect("turn");
        assert_eq!(ready, [token], "hang-up");
        let spins = (0..50).filter(|_| {
            reactor.turn(NOW, &mut ready).expect("turn");
            !ready.is_empty()
        });
        assert!(spins.count() <= 2, "a dead descriptor must not spin the reactor");
    });
}

#[test]
fn more_events_than_the_completion_queue_holds() {
    on_both(|reactor| {
        let fds: Vec<_> = (0..100).map(|_| bell()).collect();
        let tokens: Vec<_> =
            fds.iter().map(|fd| reactor.register(fd.as_fd(), Interest::READ).expect("registered")).collect();
        let mut ready = Vec::new();
        for round in 0..3 {
            for _ in 0..20 {
                fds.iter().for_each(ring);
            }
            let mut seen = vec![false; tokens.len()];
            for _ in 0..20 {
                reactor.turn(NOW, &mut ready).expect("turn");
                for token in &ready {
                    seen[tokens.iter().position(|t| t == token).expect("ours")] = true;
                }
            }
            assert!(seen.iter().all(|&s| s), "round {round} on {:?}", reactor.kind());
        }
    });
}

#[test]
fn lingering_sleeps_through_descriptors_and_wakes_for_a_ring() {
    on_both(|reactor| {
        let mut ready = Vec::new();
        let file = bell();
        let token = reactor.register(file.as_fd(), Interest::READ).expect("registered");
        reactor.turn(NOW, &mut ready).expect("turn");
        ring(&file);
        let start = Instant::now();
        reactor.linger(Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
        reactor.turn(NOW, &mut ready).expect("turn");
        assert_eq!(ready, [token], "what came meanwhile is told afterwards");

        let waker = reactor.waker();
        waker.wake();
        reactor.linger(Duration::from_secs(60));
        assert!(reactor.take_wake(), "a ring before it is kept, and it does not sleep");
        for n in 0..200 {
            let other = waker.clone();
            let thread = std::thread::spawn(move || other.wake());
            reactor.linger(Duration::from_secs(60));
            assert!(reactor.take_wake(), "ended by a ring, {n}");
            thread.join().expect("the other thread");
            // A second sleep, which the ring of the first must not end.
            reactor.linger(Duration::from_millis(1));
            assert!(!reactor.take_wake(), "one ring, one wake-up");
        }
        assert!(start.elapsed() < Duration::from_secs(50), "a ring was slept through");
    });
}
