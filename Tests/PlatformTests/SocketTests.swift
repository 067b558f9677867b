import Foundation
import XCTest
@testable import Platform

/// Two connected stream sockets, closed with the object.
final class StreamPair {
    let a: Int32
    let b: Int32
    init() throws {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw SystemError("socketpair") }
        (a, b) = (ends[0], ends[1])
    }
    deinit {
        close(a)
        close(b)
    }
}

final class SocketTests: XCTestCase {
    private func soon(_ ms: Double) -> MonotonicTime { .now.adding(milliseconds: ms) }

    private func accepted(_ listener: Int32, _ ms: Double) throws -> Int32? {
        guard let connection = try acceptConnection(listener, until: soon(ms)) else { return nil }
        return connection.release()
    }

    private func channelError(_ body: () throws -> Void, file: StaticString = #filePath, line: UInt = #line) -> String {
        do { try body() } catch let error as ChannelError { return error.description } catch { return "other: \(error)" }
        return "no error"
    }

    func testReadFully() throws {
        let pair = try StreamPair()
        try writeFully(pair.a, [1, 2, 3, 4, 5], deadline: soon(100), during: "a test")
        XCTAssertEqual(try readFully(pair.b, count: 5, deadline: soon(100), during: "a test"), [1, 2, 3, 4, 5])
        XCTAssertEqual(try readFully(pair.b, count: 0, deadline: soon(100), during: "a test"), [])
        try writeFully(pair.a, [6, 7], deadline: soon(100), during: "a test")
        shutdown(pair.a, Int32(SHUT_WR))
        XCTAssertEqual(channelError { _ = try readFully(pair.b, count: 5, deadline: soon(1000), during: "a test") },
                       "The other end closed the connection after 2 of 5 bytes")
        XCTAssertEqual(channelError { _ = try readFully(pair.b, count: 5, deadline: soon(1000), during: "a test") },
                       "The other end closed the connection")
    }

    func testDeadlines() throws {
        let pair = try StreamPair()
        let start = MonotonicTime.now
        XCTAssertEqual(channelError { _ = try readFully(pair.b, count: 1, deadline: soon(50), during: "a test") }, "Timed out during a test")
        XCTAssertGreaterThanOrEqual(MonotonicTime.now.milliseconds(since: start), 49)
        let much = [UInt8](repeating: 9, count: 8 << 20)
        XCTAssertEqual(channelError { try writeFully(pair.a, much, deadline: soon(50), during: "writing") }, "Timed out during writing")
    }

    func testWriteToAClosedSocketIsAnErrorAndNoSignal() throws {
        let pair = try StreamPair()
        shutdown(pair.b, Int32(SHUT_RDWR))
        XCTAssertEqual(channelError { try writeFully(pair.a, [1], deadline: soon(50), during: "writing") }, "send: Broken pipe")
        let byte = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)
        defer { byte.deallocate() }
        var vector = [iovec(iov_base: byte, iov_len: 1)]
        XCTAssertEqual(channelError {
            try vector.withUnsafeMutableBufferPointer { try writeFully(pair.a, vectors: $0, deadline: soon(50), during: "writing") }
        }, "sendmsg: Broken pipe")
    }

    /// More vectors than one system call takes, some empty, more bytes than the socket holds: what arrives is what was sent.
    func testVectorsInPieces() throws {
        let pair = try StreamPair()
        let lengths = (0..<3000).map { [0, 1, 4096, 37, 511][$0 % 5] }
        let total = lengths.reduce(0, +)
        let source = UnsafeMutableRawBufferPointer.allocate(byteCount: total, alignment: 16)
        defer { source.deallocate() }
        for index in 0..<total { source[index] = UInt8(truncatingIfNeeded: index &* 31 ^ index >> 8) }
        let expected = Array(source)
        let b = pair.b
        let received = Received()
        let done = expectation(description: "received")
        Thread.detachNewThread {
            received.bytes = (try? readFully(b, count: total, deadline: .now.adding(milliseconds: 5000), during: "a test")) ?? []
            done.fulfill()
        }
        var at = 0
        var vectors = lengths.map { length in
            defer { at += length }
            return iovec(iov_base: source.baseAddress.map { $0 + at }, iov_len: length)
        }
        try vectors.withUnsafeMutableBufferPointer { try writeFully(pair.a, vectors: $0, deadline: soon(5000), during: "a test") }
        wait(for: [done], timeout: 10)
        XCTAssertEqual(received.bytes, expected)
    }

    private final class Received: @unchecked Sendable { var bytes: [UInt8] = [] }

    func testWakeUp() throws {
        let pair = try StreamPair()
        let wake = try WakeUp()
        wake.signal()
        wake.signal()
        XCTAssertEqual(channelError { _ = try readFully(pair.b, count: 1, wake: wake.raw, deadline: soon(5000), during: "a test") }, "Interrupted")
        XCTAssertNil(try waitOrWake(pair.b, for: .readable, wake: wake.raw, until: soon(5000)))
        wake.clear()
        wake.clear()
        XCTAssertEqual(try waitOrWake(pair.b, for: .readable, wake: wake.raw, until: soon(20)), [])
    }

    func testHangUpIsSeenWhileNothingIsRead() throws {
        let pair = try StreamPair()
        XCTAssertEqual(try Platform.wait(pair.b, for: .hangup, until: soon(20)), [])
        try writeFully(pair.a, [1], deadline: soon(100), during: "a test")
        XCTAssertEqual(try Platform.wait(pair.b, for: .hangup, until: soon(20)), [], "Unread bytes are no hang-up")
        shutdown(pair.a, Int32(SHUT_WR))
        XCTAssertFalse(try Platform.wait(pair.b, for: .hangup, until: soon(1000)).isDisjoint(with: .hangup))
    }

    func testUnixSocketIsReplacedAndKeepsItsMode() throws {
        let path = NSTemporaryDirectory() + "sv-platform-\(getpid()).sock"
        defer { unlink(path) }
        _ = try UnixSocket.listen(path, mode: 0o600).release()
        let listener = try UnixSocket.listen(path, mode: 0o660)
        var info = stat()
        XCTAssertEqual(stat(path, &info), 0)
        XCTAssertEqual(info.st_mode & 0o777, 0o660)
        let client = try UnixSocket.connect(path)
        let server = try XCTUnwrap(accepted(listener.raw, 1000))
        try writeFully(client.raw, [5], deadline: soon(100), during: "a test")
        XCTAssertEqual(try readFully(server, count: 1, deadline: soon(1000), during: "a test"), [5])
        close(server)
        XCTAssertNil(try accepted(listener.raw, 20))
    }

    func testUnixSocketErrors() {
        let long = "/tmp/" + String(repeating: "x", count: 108)
        XCTAssertThrowsError(try UnixSocket.connect(long).release()) { XCTAssertEqual(($0 as? SystemError)?.code, ENAMETOOLONG) }
        XCTAssertThrowsError(try UnixSocket.connect("/nonexistent/socket").release()) { XCTAssertEqual(($0 as? SystemError)?.code, ENOENT) }
    }

    func testTCP() throws {
        let listener = try TCP.listen(Endpoint(address: "127.0.0.1", port: 0))
        let port = try TCP.localPort(listener.raw)
        let client = try TCP.connect(Endpoint(address: "127.0.0.1", port: port), deadline: soon(2000))
        let server = try XCTUnwrap(accepted(listener.raw, 2000))
        defer { close(server) }
        XCTAssertEqual(TCP.peerName(server), "127.0.0.1")
        XCTAssertEqual(TCP.peerName(-1), "unknown address")
        XCTAssertEqual(fcntl(client.raw, F_GETFL) & O_NONBLOCK, 0)
    }

    func testTCPRefused() throws {
        // A port that was just free and that nobody listens on.
        let port: UInt16 = try {
            let listener = try TCP.listen(Endpoint(address: "127.0.0.1", port: 0))
            return try TCP.localPort(listener.raw)
        }()
        XCTAssertEqual(channelError { _ = try TCP.connect(Endpoint(address: "127.0.0.1", port: port), deadline: soon(2000)).release() },
                       "connect 127.0.0.1:\(port): Connection refused")
    }
}
