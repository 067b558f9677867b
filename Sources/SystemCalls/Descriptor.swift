import CLinux
import Glibc

/// A failed system call: which one, on what, and why.
public struct SystemError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The call, as its manual page names it (`connect`, `mmap`).
    public let call: String
    /// What it was applied to (a path, an address), or empty.
    public let subject: String
    /// `errno` as the call left it.
    public let code: Int32

    public init(_ call: String, _ subject: String = "", code: Int32 = errno) {
        self.call = call
        self.subject = subject
        self.code = code
    }

    public var description: String {
        let reason = String(cString: strerror(code))
        return subject.isEmpty ? "\(call): \(reason)" : "\(call) \(subject): \(reason)"
    }
}

/// An open file descriptor with one owner; it is closed when the owner goes away.
public struct Descriptor: ~Copyable, Sendable {
    /// The number. Valid as long as this value lives; never close it through here.
    public let raw: Int32

    /// Takes ownership of `raw`.
    public init(owning raw: Int32) {
        self.raw = raw
    }

    /// Takes ownership of what `call` returned, or throws when that was an error.
    public init(checking raw: Int32, _ call: String, _ subject: String = "") throws(SystemError) {
        guard raw >= 0 else { throw SystemError(call, subject) }
        self.raw = raw
    }

    deinit {
        if raw >= 0 { close(raw) }
    }

    /// Gives the number away; the caller closes it.
    public consuming func release() -> Int32 {
        let number = raw
        discard self
        return number
    }

    /// Another descriptor for the same open file.
    public borrowing func duplicate() throws(SystemError) -> Descriptor {
        try Descriptor(checking: fcntl(raw, F_DUPFD_CLOEXEC, 0), "fcntl(F_DUPFD_CLOEXEC)")
    }
}

/// Repeats a call that a signal interrupted.
@inlinable
public func retryingInterrupts<T: BinaryInteger>(_ call: () -> T) -> T {
    while true {
        let result = call()
        if result != -1 || errno != EINTR { return result }
    }
}
