import Foundation
import Platform
import XCTest
@testable import ControlProtocol

/// The bare end of a socket pair; a class, because tuples don't hold noncopyable values.
private final class OtherEnd {
    let raw: Int32
    init(_ raw: Int32) { self.raw = raw }
    deinit { close(raw) }
    /// A channel of its own over the same socket.
    func channel() throws -> LineChannel { LineChannel(try Descriptor(checking: dup(raw), "dup")) }
}

final class LineChannelTests: XCTestCase {
    /// A channel and the bare other end of its socket.
    private func pair(ceiling: Int = LineChannel.defaultCeiling) throws -> (channel: LineChannel, other: OtherEnd) {
        var ends: [Int32] = [0, 0]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw SystemError("socketpair") }
        return (LineChannel(Descriptor(owning: ends[0]), ceiling: ceiling), OtherEnd(ends[1]))
    }

    private func send(_ text: String, _ descriptor: Int32) {
        let bytes = Array(text.utf8)
        XCTAssertEqual(write(descriptor, bytes, bytes.count), bytes.count)
    }

    private func line(_ channel: LineChannel, ms: Double = 2000) throws -> String? {
        try channel.readLine(deadline: .now.adding(milliseconds: ms)).map { String(decoding: $0, as: UTF8.self) }
    }

    func testLinesInOnePiece() throws {
        let (channel, other) = try pair()
        send("one\n\ntwo\nthree", other.raw)
        XCTAssertEqual(try line(channel), "one")
        XCTAssertEqual(try line(channel), "")
        XCTAssertEqual(try line(channel), "two")
        send("!\n", other.raw)
        XCTAssertEqual(try line(channel), "three!")
        shutdown(other.raw, Int32(SHUT_WR))
        XCTAssertNil(try line(channel))
        XCTAssertNil(try line(channel))
    }

    func testLineByteByByte() throws {
        let (channel, other) = try pair()
        let writer = Thread { [number = other.raw] in
            for byte in Array("{\"a\":1}\nb\n".utf8) {
                _ = [byte].withUnsafeBytes { write(number, $0.baseAddress, 1) }
                usleep(1000)
            }
        }
        writer.start()
        XCTAssertEqual(try line(channel), "{\"a\":1}")
        XCTAssertEqual(try line(channel), "b")
        withExtendedLifetime(writer) {}
        withExtendedLifetime(other) {}
    }

    func testCutOffLineIsAnErrorNotAShortLine() throws {
        let (channel, other) = try pair()
        send("whole\npart", other.raw)
        shutdown(other.raw, Int32(SHUT_WR))
        XCTAssertEqual(try line(channel), "whole")
        XCTAssertThrowsError(try line(channel)) { XCTAssertEqual($0 as? LineChannel.Failure, .cutOff(bytes: 4)) }
    }

    func testCeiling() throws {
        for (count, accepted) in [(99, true), (100, true), (101, false), (5000, false)] {
            for ending in ["\n", ""] where !(accepted && ending.isEmpty) {
                let (channel, other) = try pair(ceiling: 100)
                send(String(repeating: "x", count: count) + ending, other.raw)
                if accepted {
                    XCTAssertEqual(try line(channel)?.count, count)
                } else {
                    XCTAssertThrowsError(try line(channel)) { XCTAssertEqual($0 as? LineChannel.Failure, .tooLong(ceiling: 100)) }
                }
                withExtendedLifetime(other) {}
            }
        }
        let (channel, other) = try pair(ceiling: 100)
        XCTAssertThrowsError(try channel.writeLine([UInt8](repeating: 1, count: 101), deadline: nil))
        withExtendedLifetime(other) {}
    }

    func testReadDeadline() throws {
        let (channel, other) = try pair()
        send("no end", other.raw)
        let start = MonotonicTime.now
        XCTAssertThrowsError(try line(channel, ms: 60)) { XCTAssertEqual($0 as? LineChannel.Failure, .timedOut) }
        XCTAssertGreaterThanOrEqual(MonotonicTime.now.milliseconds(since: start), 60)
        withExtendedLifetime(other) {}
    }

    func testWriteDeadlineWhenNobodyReads() throws {
        let (channel, other) = try pair()
        XCTAssertThrowsError(try channel.writeLine([UInt8](repeating: 65, count: 4 << 20), deadline: .now.adding(milliseconds: 60))) {
            XCTAssertEqual($0 as? LineChannel.Failure, .timedOut)
        }
        withExtendedLifetime(other) {}
    }

    func testWritingToWhatIsGone() throws {
        let channel = try pair().channel
        XCTAssertThrowsError(try channel.writeLine([65], deadline: nil)) { XCTAssertEqual($0 as? LineChannel.Failure, .closed) }
    }

    func testLargeLinesBothWays() throws {
        let (channel, other) = try pair()
        let far = try other.channel()
        let large = [UInt8](repeating: 0x61, count: LineChannel.defaultCeiling)
        let writer = Thread { for _ in 0..<3 { try? far.writeLine(large, deadline: .now.adding(milliseconds: 20000)) } }
        writer.start()
        for _ in 0..<3 { XCTAssertEqual(try channel.readLine(deadline: .now.adding(milliseconds: 20000))?.count, large.count) }
        try channel.writeLine(Array("back".utf8), deadline: nil)
        XCTAssertEqual(try line(far), "back")
    }

    func testWakeUpDescriptorEndsTheWaiting() throws {
        let (channel, other) = try pair()
        let wake = try WakeUp()
        wake.signal()
        XCTAssertThrowsError(try channel.readLine(deadline: nil, wake: wake.raw)) { XCTAssertEqual($0 as? LineChannel.Failure, .interrupted) }
        wake.clear()
        send("still whole\n", other.raw)
        XCTAssertEqual(try channel.readLine(deadline: nil, wake: wake.raw), Array("still whole".utf8))
    }

    func testShutDownWakesTheReader() throws {
        let (channel, other) = try pair()
        let waker = Thread {
            usleep(30_000)
            channel.shutDown()
        }
        waker.start()
        XCTAssertNil(try channel.readLine(deadline: .now.adding(milliseconds: 5000)))
        withExtendedLifetime(other) {}
    }

    func testLinesOfSeveralWritersDoNotMix() throws {
        let (channel, other) = try pair()
        let far = try other.channel()
        for letter in UInt8(ascii: "a")...UInt8(ascii: "d") {
            Thread.detachNewThread {
                for _ in 0..<50 { try? far.writeLine([UInt8](repeating: letter, count: 20_000), deadline: .now.adding(milliseconds: 20000)) }
            }
        }
        for _ in 0..<200 {
            let line = try XCTUnwrap(try channel.readLine(deadline: .now.adding(milliseconds: 20000)))
            XCTAssertTrue(line.count == 20_000 && line.allSatisfy { $0 == line[0] })
        }
    }
}

final class ControlSocketTests: XCTestCase {
    private func temporaryPath() -> String { "/tmp/shadow-virt-\(UUID().uuidString.prefix(8)).sock" }

    func testModeStaleAndLive() throws {
        let path = temporaryPath()
        defer { unlink(path) }
        do {
            let listener = try ControlSocket.listen(path: path, mode: 0o660)
            var status = stat()
            XCTAssertEqual(stat(path, &status), 0)
            XCTAssertEqual(status.st_mode & 0o7777, 0o660)
            XCTAssertThrowsError(try listen(path)) { XCTAssertEqual(($0 as? SystemError)?.code, EADDRINUSE) }
            XCTAssertEqual(fcntl(listener.raw, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC)
        }
        // The listener is gone, its socket still there: a new one takes its place.
        XCTAssertNoThrow(try listen(path))
        XCTAssertNotEqual(access(path + ".new", F_OK), 0)
    }

    private func listen(_ path: String) throws { _ = try ControlSocket.listen(path: path) }

    func testPathsTooLong() {
        let path = "/tmp/" + String(repeating: "x", count: 120)
        XCTAssertThrowsError(try listen(path)) { XCTAssertEqual(($0 as? SystemError)?.code, ENAMETOOLONG) }
        XCTAssertThrowsError(try connect(path)) { XCTAssertEqual(($0 as? SystemError)?.code, ENAMETOOLONG) }
    }

    private func connect(_ path: String) throws { _ = try ControlSocket.connect(path: path, deadline: .now) }

    func testAcceptDeadlineAndFullQueue() throws {
        let path = temporaryPath()
        defer { unlink(path) }
        let listener = try ControlSocket.listen(path: path, backlog: 0)
        if let client = try acceptConnection(listener.raw, until: .now.adding(milliseconds: 30)) { XCTFail("client \(client.raw) from nowhere") }
        var clients: [Int32] = []
        defer { for client in clients { close(client) } }
        var code: Int32 = 0
        do throws(SystemError) {
            for _ in 0..<8 { clients.append(try ControlSocket.connect(path: path, deadline: .now.adding(milliseconds: 30)).release()) }
        } catch {
            code = error.code
        }
        XCTAssertEqual(code, ETIMEDOUT)
        if try acceptConnection(listener.raw, until: .now.adding(milliseconds: 1000)) == nil { XCTFail("nobody in a full queue") }
    }
}

final class IntervalTests: XCTestCase {
    func testAccepted() throws {
        for (text, milliseconds) in [("20ms", 20), ("20", 20), ("1s", 1000), ("0.5s", 500), ("5ms", 5), ("60s", 60000), ("60000", 60000), ("7.5ms", 7.5), ("0.005s", 5), ("5min", 300_000), ("1h", 3_600_000)] {
            XCTAssertEqual(try Interval.parse(text), milliseconds, text)
        }
    }

    func testRefused() {
        for text in ["4ms", "0", "3600.001s", "61min", "99999999999999999999"] {
            XCTAssertThrowsError(try Interval.parse(text), text) { XCTAssertEqual("\($0)", "Interval '\(text)' is out of range: use 5ms to 1h") }
        }
        for text in ["", "ms", "s", "-20", "+20", "20 ms", " 20", "1m", "20MS", "1e3", "nan", "inf", "0x20", ".5s", "5.", "1.2.3s", "1,5s", "٢٠ms", String(repeating: "9", count: 400)] {
            XCTAssertThrowsError(try Interval.parse(text), text) { XCTAssertTrue("\($0)".contains("is no interval: use for instance 20ms"), "\($0)") }
        }
    }
}
