//! Ignores signals that would end the process but mean nothing to a node.

#![expect(unsafe_code, reason = "std sets no signal handlers")]

/// Signals of closed terminals, of tools that rotate logs, and of limits of file size: a write
/// beyond such a limit then fails with an error. SIGHUP means nothing until the node handles it.
const MEANINGLESS: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGXFSZ];

/// Makes the process ignore these signals.
pub fn ignore_meaningless() {
    for signal in MEANINGLESS {
        // SAFETY: no handler of ours runs, and the kernel knows these signals.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
