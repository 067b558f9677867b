import Foundation
import Glibc
import Platform

/// Lines over a stream socket: `line := { byte except LF } LF`. Used by both ends of the control socket.
///
/// One thread may read while another writes; lines written by several threads don't mix.
/// A line that is cut off, too long or late is an error, never a short line. After an error the channel is of no more use.
public final class LineChannel: @unchecked Sendable {
    /// Bytes that a line may have. A status line has 700 bytes a domain: this is for 5000 domains.
    public static let defaultCeiling = 4 << 20

    public enum Failure: Error, Sendable, Equatable, CustomStringConvertible {
        /// The deadline passed.
        case timedOut
        /// The other end closed in the middle of a line, with this many bytes of it sent.
        case cutOff(bytes: Int)
        /// A line went past the ceiling.
        case tooLong(ceiling: Int)
        /// The other end is gone: nothing can be written any more.
        case closed
        /// The wake-up descriptor became readable.
        case interrupted
        case system(SystemError)

        public var description: String {
            switch self {
            case .timedOut: "No answer in time"
            case .cutOff(let bytes): "The connection ended in the middle of a line, after \(bytes) bytes"
            case .tooLong(let ceiling): "A line is longer than \(ceiling) bytes"
            case .closed: "The connection is closed"
            case .interrupted: "Interrupted"
            case .system(let error): "The connection failed: \(error)"
            }
        }
    }

    private let descriptor: Descriptor
    private let ceiling: Int
    private let readLock = NSLock(), writeLock = NSLock()
    private var buffer: [UInt8] = []
    /// Bytes at the front of `buffer` that were handed out, and bytes known to hold no line end.
    private var consumed = 0, searched = 0
    private var ended = false
    private var chunk = [UInt8](repeating: 0, count: 64 << 10)

    /// Takes over a connected stream socket.
    public init(_ descriptor: consuming Descriptor, ceiling: Int = LineChannel.defaultCeiling) {
        self.descriptor = descriptor
        self.ceiling = ceiling
    }

    /// The next line without its end, or nil when the other end closed after a whole line. `deadline` nil waits for ever;
    /// `wake` (a `WakeUp`'s number) ends the waiting with `.interrupted`.
    public func readLine(deadline: MonotonicTime?, wake: Int32 = -1) throws(Failure) -> [UInt8]? {
        readLock.lock()
        defer { readLock.unlock() }
        while true {
            if let line = try takeLine() { return line }
            if ended {
                guard buffer.count == consumed else { throw .cutOff(bytes: buffer.count - consumed) }
                return nil
            }
            try fill(deadline, wake)
        }
    }

    /// Writes `line` and a line end. `line` itself must hold none; JSON never does.
    public func writeLine(_ line: [UInt8], deadline: MonotonicTime?) throws(Failure) {
        guard line.count <= ceiling else { throw .tooLong(ceiling: ceiling) }
        precondition(!line.contains(UInt8(ascii: "\n")), "a line with a line end in it")
        writeLock.lock()
        defer { writeLock.unlock() }
        let bytes = line + [UInt8(ascii: "\n")]
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { send(descriptor.raw, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL | MSG_DONTWAIT)) }
            if count > 0 {
                sent += count
            } else if errno == EAGAIN {
                try wait(.writable, deadline, -1)
            } else if errno == EPIPE || errno == ECONNRESET {
                throw .closed
            } else if errno != EINTR {
                throw .system(SystemError("send"))
            }
        }
    }

    /// Ends the connection in both directions; a reader in another thread wakes up. The descriptor closes with the last reference.
    public func shutDown() {
        shutdown(descriptor.raw, Int32(SHUT_RDWR))
    }

    private func takeLine() throws(Failure) -> [UInt8]? {
        let end = buffer.withUnsafeBytes { bytes -> Int? in
            guard searched < bytes.count, let base = bytes.baseAddress,
                  let found = memchr(base + searched, Int32(UInt8(ascii: "\n")), bytes.count - searched) else { return nil }
            return UnsafeRawPointer(found) - base
        }
        searched = end.map { $0 + 1 } ?? buffer.count
        guard (end ?? buffer.count) - consumed <= ceiling else { throw .tooLong(ceiling: ceiling) }
        guard let end else { return nil }
        let line = Array(buffer[consumed..<end])
        consumed = end + 1
        if consumed == buffer.count {
            buffer.removeAll(keepingCapacity: buffer.capacity <= 1 << 20)
            (consumed, searched) = (0, 0)
        }
        return line
    }

    private func fill(_ deadline: MonotonicTime?, _ wake: Int32) throws(Failure) {
        if consumed > 0 {
            buffer.removeFirst(consumed)
            searched -= consumed
            consumed = 0
        }
        while true {
            let count = recv(descriptor.raw, &chunk, chunk.count, Int32(MSG_DONTWAIT))
            if count > 0 {
                buffer += chunk[..<count]
                return
            }
            if count == 0 || errno == ECONNRESET {
                ended = true
                return
            }
            if errno == EAGAIN {
                try wait(.readable, deadline, wake)
            } else if errno != EINTR {
                throw .system(SystemError("recv"))
            }
        }
    }

    private func wait(_ events: PollEvents, _ deadline: MonotonicTime?, _ wake: Int32) throws(Failure) {
        let ready: PollEvents
        do throws(ChannelError) {
            ready = try Platform.wait(descriptor.raw, for: events, wake: wake, until: deadline)
        } catch {
            switch error {
            case .interrupted: throw .interrupted
            case .system(let error): throw .system(error)
            default: throw .closed
            }
        }
        guard !ready.isEmpty else { throw .timedOut }
    }
}

/// How requests and answers become lines.
public enum ControlCodec {
    /// One JSON object without line ends, keys sorted.
    public static func encode(_ value: some Encodable) throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return Array(try encoder.encode(value))
    }

    public static func decode<T: Decodable>(_ type: T.Type, from line: [UInt8]) throws -> T {
        try JSONDecoder().decode(type, from: Data(line))
    }
}
