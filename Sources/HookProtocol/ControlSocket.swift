import Glibc
import SystemCalls

/// The control socket in the file system: what `SystemCalls.UnixSocket` leaves out, because it matters only where users
/// connect: a group, a live service that must not be replaced, a queue that is full for a moment.
public enum ControlSocket {
    /// Bytes that a path may have: `sun_path` without its closing zero (unix(7)).
    public static let longestPath = 107

    /// Where the service listens unless its configuration says otherwise (`control_socket`).
    public static let defaultPath = "/run/shadow-virt/control.sock"

    /// Connects to the socket at `path`. A listener whose queue is full is tried again until `deadline`.
    public static func connect(path: String, deadline: MonotonicTime) throws(SystemError) -> Descriptor {
        let socket = try make(path)
        while true {
            if retryingInterrupts({ withAddress(path) { Glibc.connect(socket.raw, $0, $1) } }) == 0 {
                try setBlocking(socket.raw, path)
                return socket
            }
            // unix(7): a full queue is EAGAIN at once; there is nothing to poll for.
            guard errno == EAGAIN else { throw SystemError("connect", path) }
            guard deadline > .now else { throw SystemError("connect", path, code: ETIMEDOUT) }
            usleep(2_000)
        }
    }

    /// Listens at `path` with exactly `mode` and, when not nil, `group`. A socket left behind by a dead service is replaced in
    /// one step (rename), so that clients never see a socket with the wrong mode; a live one is an error (EADDRINUSE).
    public static func listen(path: String, mode: mode_t = 0o660, group: gid_t? = nil, backlog: Int32 = 64)
        throws(SystemError) -> Descriptor {
        try refuseLiveListener(path)
        let temporary = path + ".new"
        // The temporary name must fit as well; the caller's path may be at the limit.
        guard temporary.utf8.count <= longestPath else { throw SystemError("bind", path, code: ENAMETOOLONG) }
        unlink(temporary)
        let socket = try make(temporary)
        guard withAddress(temporary, { Glibc.bind(socket.raw, $0, $1) }) == 0 else { throw SystemError("bind", temporary) }
        do throws(SystemError) {
            if let group, chown(temporary, uid_t.max, group) != 0 { throw SystemError("chown", temporary) }
            guard chmod(temporary, mode) == 0 else { throw SystemError("chmod", temporary) }
            try setBlocking(socket.raw, path)
            guard Glibc.listen(socket.raw, backlog) == 0 else { throw SystemError("listen", path) }
            guard rename(temporary, path) == 0 else { throw SystemError("rename", path) }
        } catch {
            unlink(temporary)
            throw error
        }
        return socket
    }

    private static func make(_ path: String) throws(SystemError) -> Descriptor {
        guard path.utf8.count <= longestPath, !path.utf8.contains(0) else {
            throw SystemError("connect", path, code: ENAMETOOLONG)
        }
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        return try Descriptor(checking: socket(AF_UNIX, kind, 0), "socket", path)
    }

    private static func setBlocking(_ descriptor: Int32, _ path: String) throws(SystemError) {
        let flags = fcntl(descriptor, F_GETFL)
        guard flags >= 0, fcntl(descriptor, F_SETFL, flags & ~O_NONBLOCK) == 0 else { throw SystemError("fcntl", path) }
    }

    private static func refuseLiveListener(_ path: String) throws(SystemError) {
        let live: Bool
        do throws(SystemError) {
            _ = try connect(path: path, deadline: .now)
            live = true
        } catch {
            // A full queue is a live listener too.
            live = error.code == ETIMEDOUT
        }
        if live { throw SystemError("listen", path, code: EADDRINUSE) }
    }

    private static func withAddress<T>(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> T) -> T {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { target in
            for (index, byte) in path.utf8.prefix(longestPath).enumerated() { target[index] = byte }
        }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
    }
}
