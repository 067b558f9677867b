import CLinux
import Glibc
import Platform

/// QEMU's own locks on an image (QEMU block/file-posix.c, `raw_apply_lock_bytes` and `raw_check_lock_bytes`), so that each side
/// sees the other:
///
///     byte 100 + bit     read-locked by whoever uses the permission
///     byte 200 + bit     read-locked by whoever does not share it
///
/// Everybody locks first and looks afterwards whether somebody else's locks contradict, so two that come at once both see it.
/// A QEMU that waits for an incoming migration has its images inactive and takes no locks until the guest is activated.
enum ImageLock {
    /// In the order of QEMU's BLK_PERM_ bits, with the names that QEMU's own messages use.
    static let permissions = ["consistent read", "write", "write unchanged", "resize"]
    static let usedBase: off_t = 100
    static let notSharedBase: off_t = 200

    /// Uses every permission and shares none. The locks go with the open file: a killed process leaves none.
    static func take(_ fd: Int32, path: String) throws {
        for base in [usedBase, notSharedBase] {
            for (bit, name) in permissions.enumerated() where clinux_lock_open_file(fd, 0, base + off_t(bit), 1) != 0 {
                guard errno == EAGAIN || errno == EACCES else { throw SystemError("fcntl(F_OFD_SETLK)", path) }
                throw ReplicaError.imageInUse(path: path, permission: name)
            }
        }
        // Ours contradict whatever anybody else has.
        for base in [usedBase, notSharedBase] {
            for (bit, name) in permissions.enumerated() {
                let locked = clinux_open_file_is_locked(fd, base + off_t(bit), 1)
                guard locked >= 0 else { throw SystemError("fcntl(F_OFD_GETLK)", path) }
                guard locked == 0 else { throw ReplicaError.imageInUse(path: path, permission: name) }
            }
        }
    }
}
