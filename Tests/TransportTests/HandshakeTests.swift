import Foundation
import Platform
import XCTest
@testable import Transport

/// Two connected stream sockets, closed with the object.
final class StreamPair: @unchecked Sendable {
    let initiator: Int32
    let acceptor: Int32
    init() throws {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw SystemError("socketpair") }
        (initiator, acceptor) = (ends[0], ends[1])
    }
    deinit {
        close(initiator)
        close(acceptor)
    }
    func shutDown() {
        shutdown(initiator, Int32(SHUT_RDWR))
        shutdown(acceptor, Int32(SHUT_RDWR))
    }
}

/// Runs `body` on a thread and hands out what it returned.
final class Running<Value>: @unchecked Sendable {
    private let done = DispatchSemaphore(value: 0)
    private var value: Value?
    init(_ body: @escaping @Sendable () -> Value) {
        Thread.detachNewThread { [self] in
            value = body()
            done.signal()
        }
    }
    func result(seconds: Double = 5) throws -> Value {
        guard done.wait(timeout: .now() + seconds) == .success else { throw ChannelError.timedOut(during: "a test's thread") }
        done.signal()
        return try XCTUnwrap(value)
    }
}

private func outcome(_ body: () throws -> String) -> String {
    do { return try body() } catch let error as HandshakeError { return error.name } catch { return "other: \(error)" }
}

extension HandshakeError {
    var name: String {
        switch self {
        case .notShadowVirt: "notShadowVirt"
        case .version(let ours, let theirs): "version \(ours) \(theirs)"
        case .wrongSecret: "wrongSecret"
        case .refused(let reason): "refused \(reason)"
        case .unknownSession(let reason): "unknownSession \(reason)"
        case .channel(let error): "channel \(error)"
        }
    }
}

final class HandshakeTests: XCTestCase {
    private static let right = SharedSecret(Array("a secret of both".utf8))
    private static let other = SharedSecret(Array("another secret".utf8))
    private static let session = UUID(uuid: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16))

    private func initiate(_ pair: StreamPair, _ secret: SharedSecret, ms: Double = 2000) -> Running<String> {
        Running {
            outcome {
                try Handshake.initiate(pair.initiator, secret: secret, name: "host-a", peer: "host-b", purpose: .data, session: Self.session,
                                       deadline: .now.adding(milliseconds: ms))
                return "welcome"
            }
        }
    }

    private func accept(_ pair: StreamPair, _ secret: SharedSecret, _ verdict: Handshake.Verdict = .welcome, ms: Double = 2000) -> Running<String> {
        Running {
            outcome {
                let deadline = MonotonicTime.now.adding(milliseconds: ms)
                do {
                    let peer = try Handshake.accept(pair.acceptor, secret: secret, deadline: deadline)
                    try Handshake.conclude(pair.acceptor, verdict, deadline: deadline)
                    return "\(peer.name) \(peer.purpose) \(peer.session)"
                } catch {
                    shutdown(pair.acceptor, Int32(SHUT_RDWR))
                    throw error
                }
            }
        }
    }

    private func both(_ a: SharedSecret, _ b: SharedSecret, _ verdict: Handshake.Verdict = .welcome) throws -> (String, String) {
        let pair = try StreamPair()
        let acceptor = accept(pair, b, verdict)
        let initiating = initiate(pair, a)
        let initiator = Running<String> {
            let result = (try? initiating.result()) ?? "hung"
            // A service that was turned away closes.
            if result != "welcome" { shutdown(pair.initiator, Int32(SHUT_RDWR)) }
            return result
        }
        return (try initiator.result(), try acceptor.result())
    }

    func testRightSecret() throws {
        let result = try both(Self.right, Self.right)
        XCTAssertEqual(result.0, "welcome")
        XCTAssertEqual(result.1, "host-a data 01020304-0506-0708-090A-0B0C0D0E0F10")
    }

    func testNoSecretOnEitherSide() throws {
        let result = try both(.none, .none)
        XCTAssertEqual(result.0, "welcome")
        XCTAssertFalse(SharedSecret.none.isConfigured)
        XCTAssertTrue(Self.right.isConfigured)
    }

    func testWrongSecretIsNoticedByTheInitiatorFirst() throws {
        for (a, b) in [(Self.right, Self.other), (Self.other, Self.right), (.none, Self.right), (Self.right, .none)] {
            let result = try both(a, b)
            XCTAssertEqual(result.0, "wrongSecret")
            XCTAssertEqual(result.1, "channel The other end closed the connection")
        }
    }

    /// An initiator that does not check the acceptor, and does not know the secret.
    func testWrongSecretIsNoticedByTheAcceptor() throws {
        let pair = try StreamPair()
        let acceptor = accept(pair, Self.right)
        try write(pair.initiator, Self.hello)
        _ = try read(pair.initiator, 4 + 2 + 32 + 32)
        try write(pair.initiator, [UInt8](repeating: 0, count: 32))
        XCTAssertEqual(try acceptor.result(), "wrongSecret")
    }

    func testVerdicts() throws {
        XCTAssertEqual(try both(Self.right, Self.right, .refused("No room for another domain")).0, "refused No room for another domain")
        XCTAssertEqual(try both(Self.right, Self.right, .unknownSession("No such session")).0, "unknownSession No such session")
        let long = String(repeating: "ü", count: 5000)
        XCTAssertTrue(try both(Self.right, Self.right, .refused(long)).0.hasPrefix("refused üüü"))
    }

    /// Hello of host-a, field by field.
    private static let version: [UInt8] = withUnsafeBytes(of: Handshake.version.littleEndian) { Array($0) }
    private static let hello: [UInt8] = [
        [UInt8]("SVP1".utf8),                    // magic
        version,
        [2] as [UInt8],                          // purpose: data
        Array<UInt8>(1...16),                    // session
        [UInt8](repeating: 0xa5, count: 32),     // nonce
        [6] + Array("host-a".utf8) as [UInt8],   // name
    ].flatMap { $0 }

    func testHelloOnTheWire() throws {
        let pair = try StreamPair()
        _ = initiate(pair, Self.right)
        var bytes = try read(pair.acceptor, Self.hello.count)
        bytes.replaceSubrange(23..<55, with: [UInt8](repeating: 0xa5, count: 32))
        XCTAssertEqual(bytes, Self.hello)
        pair.shutDown()
    }

    func testRubbish() throws {
        for rubbish in [Array("GET / HTTP/1.1\r\nHost: host-b\r\n\r\n".utf8), [UInt8](repeating: 0, count: 200),
                        [UInt8](repeating: 0xff, count: 200)] {
            let pair = try StreamPair()
            let acceptor = accept(pair, Self.right)
            try write(pair.initiator, rubbish)
            XCTAssertEqual(try acceptor.result(), "notShadowVirt")
            let second = try StreamPair()
            let initiator = initiate(second, Self.right)
            try write(second.acceptor, rubbish)
            XCTAssertEqual(try initiator.result(), "notShadowVirt")
        }
        for (offset, value) in [(6, 9), (55, 65)] as [(Int, UInt8)] {       // purpose, length of the name
            let pair = try StreamPair()
            var bytes = Self.hello
            bytes[offset] = value
            let acceptor = accept(pair, Self.right)
            try write(pair.initiator, bytes)
            XCTAssertEqual(try acceptor.result(), "notShadowVirt")
        }
    }

    /// Another version may have another hello: both sides learn of the mismatch after magic and version.
    func testVersionMismatch() throws {
        let pair = try StreamPair()
        let acceptor = accept(pair, Self.right)
        try write(pair.initiator, Array("SVP1".utf8) + [1, 0] + Array("something else altogether".utf8))
        XCTAssertEqual(try read(pair.initiator, 6), Array("SVP1".utf8) + Self.version)
        shutdown(pair.initiator, Int32(SHUT_RDWR))
        XCTAssertEqual(try acceptor.result(), "version \(Handshake.version) 1")

        let second = try StreamPair()
        let initiator = initiate(second, Self.right)
        try write(second.acceptor, Array("SVP1".utf8) + [0, 3])
        XCTAssertEqual(try initiator.result(), "version \(Handshake.version) 768")
    }

    func testHang() throws {
        let pair = try StreamPair()
        let start = MonotonicTime.now
        let acceptor = accept(pair, Self.right, ms: 60)
        XCTAssertEqual(try acceptor.result(), "channel Timed out during the handshake")
        let second = try StreamPair()
        XCTAssertEqual(try initiate(second, Self.right, ms: 60).result(), "channel Timed out during the handshake")
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: start), 2000)
    }

    /// A peer that gives a byte at a time must not stretch the deadline.
    func testDripDoesNotStretchTheDeadline() throws {
        let pair = try StreamPair()
        let acceptor = accept(pair, Self.right, ms: 100)
        let feeder = Running<Bool> {
            for byte in Self.hello {
                var byte = byte
                if send(pair.initiator, &byte, 1, Int32(MSG_NOSIGNAL)) != 1 { return true }
                usleep(20_000)
            }
            return false
        }
        XCTAssertEqual(try acceptor.result(seconds: 1), "channel Timed out during the handshake")
        XCTAssertTrue(try feeder.result())
    }

    func testCutAtEveryByte() throws {
        for count in 0..<Self.hello.count {
            let pair = try StreamPair()
            let acceptor = accept(pair, Self.right)
            try write(pair.initiator, Array(Self.hello.prefix(count)))
            shutdown(pair.initiator, Int32(SHUT_WR))
            let result = try acceptor.result()
            XCTAssertTrue(result.hasPrefix("channel The other end closed"), "after \(count) bytes: \(result)")
        }
        // The acceptor's side: answer, proof and verdict of a real one, cut.
        let whole = 4 + 2 + 32 + 32 + 3 + 4
        for count in 0..<whole {
            let outer = try StreamPair()
            let inner = try StreamPair()
            let acceptor = accept(inner, Self.right, .refused("why?"))
            let initiator = initiate(outer, Self.right)
            let upstream = Running<Bool> {
                while let byte = try? readFully(outer.acceptor, count: 1, deadline: .now.adding(milliseconds: 2000), during: "a test") {
                    if (try? writeFully(inner.initiator, byte, deadline: .now.adding(milliseconds: 2000), during: "a test")) == nil { break }
                }
                return true
            }
            for _ in 0..<count { try write(outer.acceptor, try read(inner.initiator, 1)) }
            shutdown(outer.acceptor, Int32(SHUT_RDWR))
            let result = try initiator.result()
            XCTAssertTrue(result.hasPrefix("channel The other end closed") || result.hasPrefix("channel send"), "after \(count) bytes: \(result)")
            inner.shutDown()
            _ = try acceptor.result()
            _ = try upstream.result()
        }
    }

    /// Every single bit that an attacker changes on the way is noticed by one of the two before anything is believed.
    func testTamperedBytesAreNoticed() throws {
        for offset in stride(from: 0, to: Self.hello.count, by: 3) {
            let outer = try StreamPair()
            let inner = try StreamPair()
            let acceptor = accept(inner, Self.right, ms: 1000)
            let initiator = initiate(outer, Self.right, ms: 1000)
            var hello = try read(outer.acceptor, Self.hello.count)
            hello[offset] ^= 1
            if offset != 55 { try write(inner.initiator, hello) } else { inner.shutDown() }
            if let answer = try? read(inner.initiator, 70, ms: 200) { try write(outer.acceptor, answer) }
            let result = try? read(outer.acceptor, 1, ms: 50)
            XCTAssertNil(result, "The initiator answered to a changed hello, byte \(offset)")
            outer.shutDown()
            inner.shutDown()
            XCTAssertNotEqual(try initiator.result(), "welcome")
            XCTAssertFalse(try acceptor.result().hasPrefix("host"))
        }
    }

    /// An attacker without the secret opens a second connection to have its own challenge answered.
    func testReflection() throws {
        // To the initiator: send its own hello's parts back, with its own proof as ours.
        let pair = try StreamPair()
        let initiator = initiate(pair, Self.right)
        let hello = try read(pair.acceptor, Self.hello.count)
        try write(pair.acceptor, Array(hello[0..<6]) + Array(hello[23..<55]) + [UInt8](repeating: 0, count: 32))
        XCTAssertEqual(try initiator.result(), "wrongSecret")

        // To the acceptor: its own proof, sent back as the initiator's.
        let second = try StreamPair()
        let acceptor = accept(second, Self.right)
        try write(second.initiator, Self.hello)
        let answer = try read(second.initiator, 70)
        try write(second.initiator, Array(answer[38..<70]))
        XCTAssertEqual(try acceptor.result(), "wrongSecret")

        // To the acceptor: the proof that another of its connections gave for the same challenge.
        let third = try StreamPair()
        let fourth = try StreamPair()
        let one = accept(third, Self.right)
        let two = accept(fourth, Self.right)
        try write(third.initiator, Self.hello)
        let challenge = try read(third.initiator, 70)
        var mirrored = Self.hello
        mirrored.replaceSubrange(23..<55, with: challenge[6..<38])
        try write(fourth.initiator, mirrored)
        try write(third.initiator, Array(try read(fourth.initiator, 70)[38..<70]))
        XCTAssertEqual(try one.result(), "wrongSecret")
        fourth.shutDown()
        _ = try two.result()
    }

    /// A recorded exchange proves nothing on the next connection.
    func testReplay() throws {
        let first = try StreamPair()
        let relay = try StreamPair()
        let acceptor = accept(relay, Self.right)
        let initiator = initiate(first, Self.right)
        let hello = try read(first.acceptor, Self.hello.count)
        try write(relay.initiator, hello)
        try write(first.acceptor, try read(relay.initiator, 70))
        let proof = try read(first.acceptor, 32)
        try write(relay.initiator, proof)
        try write(first.acceptor, try read(relay.initiator, 3))
        XCTAssertEqual(try initiator.result(), "welcome")
        XCTAssertTrue(try acceptor.result().hasPrefix("host-a"))

        let again = try StreamPair()
        let second = accept(again, Self.right)
        try write(again.initiator, hello + proof)
        XCTAssertEqual(try second.result(), "wrongSecret")
    }

    func testRandomBytesDiffer() {
        XCTAssertEqual(Set((0..<50).map { _ in randomBytes(32) }).count, 50)
        XCTAssertTrue(Handshake.equal([1, 2], [1, 2]))
        XCTAssertFalse(Handshake.equal([1, 2], [1, 3]))
        XCTAssertFalse(Handshake.equal([1, 2], [1, 2, 3]))
    }

    /// RFC 4231, test case 2.
    func testHMAC() {
        let digest = SharedSecret(Array("Jefe".utf8)).authenticate([Array("what do ya want ".utf8), Array("for nothing?".utf8)])
        XCTAssertEqual(digest.map { String(format: "%02x", $0) }.joined(),
                       "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    }

    private func write(_ fd: Int32, _ bytes: [UInt8]) throws {
        try writeFully(fd, bytes, deadline: .now.adding(milliseconds: 2000), during: "a test")
    }

    private func read(_ fd: Int32, _ count: Int, ms: Double = 2000) throws -> [UInt8] {
        try readFully(fd, count: count, deadline: .now.adding(milliseconds: ms), during: "a test")
    }
}
