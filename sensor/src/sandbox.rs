//! What a thread gives up once it holds what it needs.
//!
//! Capabilities and no-new-privileges belong to a thread, not to the process, so every thread calls
//! [`give_up_privileges`] for itself (Source: capabilities(7), PR_SET_NO_NEW_PRIVS in prctl(2)).

use caps::CapSet;

/// Why a thread still has privileges.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel refused to take a capability set away.
    #[error("cannot give up capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel refused no-new-privileges.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[from] nix::errno::Errno),
}

/// Takes all capabilities from the calling thread, for ever.
///
/// # Errors
/// The kernel refused; the thread must not go on with privileges that it was to give up.
pub fn give_up_privileges() -> Result<(), SandboxError> {
    nix::sys::prctl::set_no_new_privs()?;
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use caps::Capability;

    use super::*;

    #[test]
    fn a_thread_without_privileges_does_not_get_them_back() {
        let left = std::thread::spawn(|| {
            give_up_privileges().unwrap();
            let regained = caps::raise(None, CapSet::Effective, Capability::CAP_NET_RAW);
            let may_capture = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_RAW);
            (
                may_capture.unwrap(),
                regained.is_ok(),
                caps::read(None, CapSet::Permitted).unwrap().len(),
            )
        });
        assert_eq!(left.join().unwrap(), (false, false, 0));
    }
}
