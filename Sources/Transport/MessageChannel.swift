import Foundation
import Platform

/// Codable messages between two services: u32 length (little-endian), then that many bytes of JSON.
public final class MessageChannel: Sendable {
    /// A domain's XML with a few hundred devices stays below 1 MiB.
    public static let longestMessage = 8 << 20

    private let descriptor: Descriptor

    public init(_ descriptor: consuming Descriptor) {
        self.descriptor = descriptor
    }

    public var raw: Int32 { descriptor.raw }

    public func send(_ message: some Encodable, deadline: MonotonicTime) throws {
        let body = try JSONEncoder().encode(message)
        guard body.count <= Self.longestMessage else {
            throw ChannelError.tooLong(what: "A message", length: body.count, limit: Self.longestMessage)
        }
        var framed = Data(capacity: 4 + body.count)
        withUnsafeBytes(of: UInt32(body.count).littleEndian) { framed.append(contentsOf: $0) }
        framed.append(body)
        try framed.withUnsafeBytes { try writeFully(descriptor.raw, bytes: $0, deadline: deadline, during: "sending a message") }
    }

    /// The next message; `wake` interrupts the wait for its first byte. Without a deadline that wait is endless, but a message that
    /// has begun must be there within 10 s.
    public func receive<Message: Decodable>(_ type: Message.Type, wake: Int32 = -1, deadline: MonotonicTime?) throws -> Message {
        if try wait(descriptor.raw, for: .readable, wake: wake, until: deadline).isEmpty {
            throw ChannelError.timedOut(during: "waiting for a message")
        }
        let limit = deadline ?? MonotonicTime.now.adding(milliseconds: 10_000)
        var length: UInt32 = 0
        try withUnsafeMutableBytes(of: &length) { buffer in
            guard let base = buffer.baseAddress else { return }
            try readFully(descriptor.raw, into: base, count: 4, deadline: limit, during: "waiting for a message")
        }
        let count = Int(UInt32(littleEndian: length))
        guard count <= Self.longestMessage else {
            throw ChannelError.tooLong(what: "A message", length: count, limit: Self.longestMessage)
        }
        var body = Data(count: count)
        try body.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            try readFully(descriptor.raw, into: base, count: count, deadline: limit, during: "receiving a message")
        }
        return try JSONDecoder().decode(type, from: body)
    }
}
