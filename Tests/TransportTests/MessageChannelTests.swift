import Foundation
import Platform
import XCTest
@testable import Transport

final class MessageChannelTests: XCTestCase {
    private struct Message: Codable, Equatable {
        var text: String
        var number: Int
    }

    private func channel() throws -> (channel: MessageChannel, pair: StreamPair) {
        let pair = try StreamPair()
        return (MessageChannel(try Descriptor(checking: dup(pair.initiator), "dup")), pair)
    }

    private func soon(_ ms: Double = 2000) -> MonotonicTime { .now.adding(milliseconds: ms) }

    func testThereAndBack() throws {
        let (channel, pair) = try channel()
        let other = MessageChannel(try Descriptor(checking: dup(pair.acceptor), "dup"))
        for message in [Message(text: "", number: 0), Message(text: "ü\n\u{0}", number: .max)] {
            try channel.send(message, deadline: soon())
            XCTAssertEqual(try other.receive(Message.self, deadline: soon()), message)
        }
        let large = Message(text: String(repeating: "x", count: 4 << 20), number: 1)
        let receiving = Running<Bool> { (try? other.receive(Message.self, deadline: .now.adding(milliseconds: 5000))) == large }
        try channel.send(large, deadline: soon(5000))
        XCTAssertTrue(try receiving.result())
    }

    func testBytesOnTheWire() throws {
        let (channel, pair) = try channel()
        try channel.send(["a": 1], deadline: soon())
        XCTAssertEqual(try readFully(pair.acceptor, count: 11, deadline: soon(), during: "a test"), [7, 0, 0, 0] + Array("{\"a\":1}".utf8))
    }

    func testTooLong() throws {
        let (channel, pair) = try channel()
        XCTAssertThrowsError(try channel.send(String(repeating: "x", count: 9 << 20), deadline: soon())) {
            XCTAssertEqual("\($0)", "A message announces 9437186 bytes, the limit is 8388608")
        }
        defer { pair.shutDown() }
        try writeFully(pair.acceptor, [0, 0, 0x80, 0x00, 0], deadline: soon(), during: "a test")
        XCTAssertThrowsError(try channel.receive(Message.self, deadline: soon(50))) { error in
            XCTAssertEqual("\(error)", "Timed out during receiving a message", "exactly 8 MiB is allowed")
        }
        let (second, other) = try self.channel()
        try writeFully(other.acceptor, [0xff, 0xff, 0xff, 0xff], deadline: soon(), during: "a test")
        XCTAssertThrowsError(try second.receive(Message.self, deadline: soon())) {
            XCTAssertEqual("\($0)", "A message announces 4294967295 bytes, the limit is 8388608")
        }
    }

    func testCutAtEveryByte() throws {
        let whole = [UInt8]([23, 0, 0, 0]) + Array("{\"text\":\"x\",\"number\":1}".utf8)
        for count in 0..<whole.count {
            let (channel, pair) = try channel()
            try writeFully(pair.acceptor, Array(whole.prefix(count)), deadline: soon(), during: "a test")
            shutdown(pair.acceptor, Int32(SHUT_WR))
            XCTAssertThrowsError(try channel.receive(Message.self, deadline: soon())) { error in
                XCTAssertTrue("\(error)".hasPrefix("The other end closed the connection"), "after \(count): \(error)")
            }
        }
        let (channel, pair) = try channel()
        try writeFully(pair.acceptor, whole, deadline: soon(), during: "a test")
        XCTAssertEqual(try channel.receive(Message.self, deadline: nil), Message(text: "x", number: 1))
    }

    func testNotJSON() throws {
        for body in ["", "x", "{\"text\":1}", "{\"text\":\"x\",\"number\":1", "\u{0}\u{0}"] {
            let (channel, pair) = try channel()
            try writeFully(pair.acceptor, [UInt8(body.utf8.count), 0, 0, 0] + Array(body.utf8), deadline: soon(), during: "a test")
            XCTAssertThrowsError(try channel.receive(Message.self, deadline: soon())) { XCTAssertTrue($0 is DecodingError, "\($0)") }
        }
    }

    func testDeadlineAndWakeUp() throws {
        let (channel, pair) = try channel()
        defer { pair.shutDown() }
        XCTAssertThrowsError(try channel.receive(Message.self, deadline: soon(50))) {
            XCTAssertEqual("\($0)", "Timed out during waiting for a message")
        }
        let wake = try WakeUp()
        wake.signal()
        XCTAssertThrowsError(try channel.receive(Message.self, wake: wake.raw, deadline: nil)) { XCTAssertEqual("\($0)", "Interrupted") }
        // Once a message has begun a wake-up does not tear it: the next one would be read from its middle.
        try writeFully(pair.acceptor, [23, 0], deadline: soon(), during: "a test")
        let rest = Running<Bool> {
            usleep(50_000)
            return (try? writeFully(pair.acceptor, [0, 0] + Array("{\"text\":\"x\",\"number\":1}".utf8), deadline: .now.adding(milliseconds: 1000),
                                    during: "a test")) != nil
        }
        XCTAssertEqual(try channel.receive(Message.self, wake: wake.raw, deadline: nil), Message(text: "x", number: 1))
        XCTAssertTrue(try rest.result())
    }

    func testFullSocket() throws {
        let (channel, pair) = try channel()
        try withExtendedLifetime(pair) {
            XCTAssertThrowsError(try channel.send(String(repeating: "x", count: 4 << 20), deadline: soon(50))) {
                XCTAssertEqual("\($0)", "Timed out during sending a message")
            }
        }
    }
}
