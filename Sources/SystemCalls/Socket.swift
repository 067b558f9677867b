import CLinux
import Glibc

/// Why a bounded read or write on a socket ended early.
public enum ChannelError: Error, CustomStringConvertible, Sendable {
    /// The other end closed after `received` of `expected` bytes.
    case closed(received: Int, expected: Int)
    /// Nothing moved until the deadline.
    case timedOut(during: String)
    /// A message announced more bytes than its ceiling allows.
    case tooLong(what: String, length: Int, limit: Int)
    /// The wake-up descriptor became readable: somebody asked us to stop waiting.
    case interrupted
    case system(SystemError)

    public var description: String {
        switch self {
        case .closed(0, _): "The other end closed the connection"
        case .closed(let received, let expected): "The other end closed the connection after \(received) of \(expected) bytes"
        case .timedOut(let what): "Timed out during \(what)"
        case .tooLong(let what, let length, let limit): "\(what) announces \(length) bytes, the limit is \(limit)"
        case .interrupted: "Interrupted"
        case .system(let error): error.description
        }
    }
}

/// What to wait for.
public struct PollEvents: OptionSet, Sendable {
    public let rawValue: Int16
    public init(rawValue: Int16) { self.rawValue = rawValue }
    public static let readable = PollEvents(rawValue: Int16(POLLIN))
    public static let writable = PollEvents(rawValue: Int16(POLLOUT))
    /// The other end closed, at least for writing.
    public static let hangup = PollEvents(rawValue: 0x2000 | Int16(POLLHUP) | Int16(POLLERR))
}

/// Waits on one descriptor and, when given, a wake-up descriptor, whose signal is an error here.
/// Returns what is ready on `fd` (empty: the deadline passed).
public func wait(_ fd: Int32, for events: PollEvents, wake: Int32 = -1, until deadline: MonotonicTime?) throws(ChannelError) -> PollEvents {
    guard let ready = try waitOrWake(fd, for: events, wake: wake, until: deadline) else { throw .interrupted }
    return ready
}

/// The same, with nil for a signal on the wake-up descriptor.
public func waitOrWake(_ fd: Int32, for events: PollEvents, wake: Int32, until deadline: MonotonicTime?) throws(ChannelError) -> PollEvents? {
    while true {
        var polled = (pollfd(fd: fd, events: events.rawValue, revents: 0), pollfd(fd: wake, events: Int16(POLLIN), revents: 0))
        let ready = withUnsafeMutablePointer(to: &polled) { pair in
            pair.withMemoryRebound(to: pollfd.self, capacity: 2) { poll($0, 2, deadline?.pollTimeout ?? -1) }
        }
        if ready < 0 {
            if errno == EINTR { continue }
            throw .system(SystemError("poll"))
        }
        if ready == 0 {
            if let deadline, deadline > .now { continue }
            return []
        }
        if polled.0.revents != 0 { return PollEvents(rawValue: polled.0.revents) }
        if polled.1.revents != 0 { return nil }
    }
}

/// Reads exactly `count` bytes, waiting at most until `deadline`.
public func readFully(_ fd: Int32, into base: UnsafeMutableRawPointer, count: Int, wake: Int32 = -1, deadline: MonotonicTime?,
                      during what: String) throws(ChannelError) {
    var done = 0
    while done < count {
        let n = retryingInterrupts { recv(fd, base + done, count - done, Int32(MSG_DONTWAIT)) }
        if n > 0 {
            done += n
        } else if n == 0 {
            throw .closed(received: done, expected: count)
        } else if errno == EAGAIN || errno == EWOULDBLOCK {
            if try wait(fd, for: .readable, wake: wake, until: deadline).isEmpty { throw .timedOut(during: what) }
        } else {
            throw .system(SystemError("recv"))
        }
    }
}

/// Writes all of the vectors, waiting at most until `deadline`. The vectors are used up: their bases and lengths move.
public func writeFully(_ fd: Int32, vectors: UnsafeMutableBufferPointer<iovec>, wake: Int32 = -1, deadline: MonotonicTime?,
                       during what: String) throws(ChannelError) {
    // IOV_MAX: sendmsg refuses more vectors in one call.
    let most = 1024
    var first = 0
    while first < vectors.count {
        var message = msghdr()
        message.msg_iov = vectors.baseAddress.map { $0 + first }
        message.msg_iovlen = min(most, vectors.count - first)
        var n = retryingInterrupts { sendmsg(fd, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) }
        if n < 0 {
            guard errno == EAGAIN || errno == EWOULDBLOCK else { throw .system(SystemError("sendmsg")) }
            if try wait(fd, for: .writable, wake: wake, until: deadline).isEmpty { throw .timedOut(during: what) }
            continue
        }
        while first < vectors.count, n >= vectors[first].iov_len {
            n -= vectors[first].iov_len
            first += 1
        }
        if n > 0 {
            vectors[first].iov_base = vectors[first].iov_base.map { $0 + n }
            vectors[first].iov_len -= n
        }
    }
}

/// Writes all of `bytes`, waiting at most until `deadline`.
public func writeFully(_ fd: Int32, bytes: UnsafeRawBufferPointer, wake: Int32 = -1, deadline: MonotonicTime?,
                       during what: String) throws(ChannelError) {
    var done = 0
    while done < bytes.count {
        let n = retryingInterrupts {
            send(fd, bytes.baseAddress.map { $0 + done }, bytes.count - done, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL))
        }
        if n >= 0 {
            done += n
        } else if errno == EAGAIN || errno == EWOULDBLOCK {
            if try wait(fd, for: .writable, wake: wake, until: deadline).isEmpty { throw .timedOut(during: what) }
        } else {
            throw .system(SystemError("send"))
        }
    }
}

/// Unix-domain sockets.
public enum UnixSocket {
    private static func address(_ path: String) throws(SystemError) -> sockaddr_un {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { throw SystemError("bind", path, code: ENAMETOOLONG) }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return address
    }

    private static func withAddress<R>(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> R) throws(SystemError) -> R {
        var address = try address(path)
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
    }

    /// A listening stream socket at `path`; an old socket file there is replaced. `mode` is set before anyone can connect.
    public static func listen(_ path: String, mode: mode_t, backlog: Int32 = 16) throws(SystemError) -> Descriptor {
        let socket = try Descriptor(checking: Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0), "socket")
        unlink(path)
        let old = umask(0o777 & ~mode)
        let bound = try withAddress(path) { bind(socket.raw, $0, $1) }
        umask(old)
        guard bound == 0 else { throw SystemError("bind", path) }
        guard Glibc.listen(socket.raw, backlog) == 0 else { throw SystemError("listen", path) }
        return socket
    }

    /// Connects; a listener with a full queue or none at all is an error at once.
    public static func connect(_ path: String) throws(SystemError) -> Descriptor {
        let socket = try Descriptor(checking: Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0), "socket")
        let connected = try withAddress(path) { address, length in retryingInterrupts { Glibc.connect(socket.raw, address, length) } }
        guard connected == 0 else { throw SystemError("connect", path) }
        return socket
    }

    /// Two connected ends.
    public struct Pair: ~Copyable {
        public var ours: Descriptor
        public var theirs: Descriptor

        init(ours: consuming Descriptor, theirs: consuming Descriptor) {
            self.ours = ours
            self.theirs = theirs
        }

        /// Gives our end away and closes the other, which has been passed on by then.
        public consuming func takeOurs() -> Descriptor { ours }
    }

    /// A connected pair that keeps message boundaries and can carry descriptors.
    public static func messagePair() throws(SystemError) -> Pair { try pair(SOCK_SEQPACKET) }

    /// A connected pair for bytes.
    public static func streamPair() throws(SystemError) -> Pair { try pair(SOCK_STREAM) }

    private static func pair(_ type: __socket_type) throws(SystemError) -> Pair {
        var pair: (Int32, Int32) = (-1, -1)
        let made = withUnsafeMutablePointer(to: &pair) {
            $0.withMemoryRebound(to: Int32.self, capacity: 2) {
                socketpair(AF_UNIX, Int32(type.rawValue | SOCK_CLOEXEC.rawValue), 0, $0)
            }
        }
        guard made == 0 else { throw SystemError("socketpair") }
        return Pair(ours: Descriptor(owning: pair.0), theirs: Descriptor(owning: pair.1))
    }
}

/// Accepts one connection; nil when the deadline passed.
public func acceptConnection(_ listener: Int32, wake: Int32 = -1, until deadline: MonotonicTime?) throws(ChannelError) -> Descriptor? {
    while true {
        if try wait(listener, for: .readable, wake: wake, until: deadline).isEmpty { return nil }
        let fd = clinux_accept(listener)
        if fd >= 0 { return Descriptor(owning: fd) }
        switch errno {
        case EINTR, EAGAIN, ECONNABORTED: continue
        default: throw .system(SystemError("accept"))
        }
    }
}

/// A descriptor that wakes a thread which waits in poll(2).
public final class WakeUp: Sendable {
    private let descriptor: Descriptor
    public var raw: Int32 { descriptor.raw }

    public init() throws(SystemError) {
        descriptor = try Descriptor(checking: clinux_eventfd(), "eventfd")
    }

    /// Wakes whoever waits, now or at the next wait.
    public func signal() {
        var one: UInt64 = 1
        _ = write(descriptor.raw, &one, 8)
    }

    /// Forgets signals that were given before.
    public func clear() {
        var count: UInt64 = 0
        _ = read(descriptor.raw, &count, 8)
    }
}

/// The same for an array.
public func writeFully(_ fd: Int32, _ bytes: [UInt8], wake: Int32 = -1, deadline: MonotonicTime?, during what: String) throws(ChannelError) {
    let result: Result<Void, ChannelError> = bytes.withUnsafeBytes { buffer in
        Result { () throws(ChannelError) in try writeFully(fd, bytes: buffer, wake: wake, deadline: deadline, during: what) }
    }
    try result.get()
}

/// Reads exactly `count` bytes into a new array; the caller has checked `count` against a ceiling.
public func readFully(_ fd: Int32, count: Int, wake: Int32 = -1, deadline: MonotonicTime?, during what: String) throws(ChannelError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let result: Result<Void, ChannelError> = bytes.withUnsafeMutableBytes { buffer in
        guard let base = buffer.baseAddress else { return .success(()) }
        return Result { () throws(ChannelError) in
            try readFully(fd, into: base, count: count, wake: wake, deadline: deadline, during: what)
        }
    }
    try result.get()
    return bytes
}
