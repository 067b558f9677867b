import Foundation
import XCTest
@testable import Platform

final class BasicsTests: XCTestCase {
    func testMonotonicTime() {
        let start = MonotonicTime(nanoseconds: 1_000_000_000)
        XCTAssertEqual(start.adding(milliseconds: 1.5).nanoseconds, 1_001_500_000)
        XCTAssertEqual(start.adding(milliseconds: -5), start)
        XCTAssertEqual(start.adding(milliseconds: 20).milliseconds(since: start), 20)
        XCTAssertEqual(start.milliseconds(since: start.adding(milliseconds: 20)), 0)
        XCTAssertEqual(start.pollTimeout, 0)
        XCTAssertEqual(MonotonicTime(nanoseconds: .max).pollTimeout, .max)
        let timeout = MonotonicTime.now.adding(milliseconds: 0.5).pollTimeout
        XCTAssertLessThanOrEqual(timeout, 1, "Rounded up, never to 0 before the time has come")
    }

    func testTimestamps() {
        XCTAssertEqual(Timestamp.format(seconds: 0, milliseconds: 7), "1970-01-01T00:00:00.007Z")
        XCTAssertEqual(Timestamp.format(seconds: 1_709_210_096, milliseconds: 999), "2024-02-29T12:34:56.999Z")
    }

    func testEndpoints() {
        XCTAssertEqual(Endpoint(address: "fe80::1", port: 1).description, "[fe80::1]:1")
        XCTAssertEqual(Endpoint(address: "host-b", port: 65535).description, "host-b:65535")
    }

    func testDescriptorClosesOnce() throws {
        var ends: [Int32] = [-1, -1]
        XCTAssertEqual(pipe(&ends), 0)
        do {
            let reading = Descriptor(owning: ends[0])
            let copy = try reading.duplicate()
            XCTAssertNotEqual(copy.raw, reading.raw)
            XCTAssertEqual(fcntl(copy.raw, F_GETFD), FD_CLOEXEC)
        }
        XCTAssertEqual(fcntl(ends[0], F_GETFD), -1)
        let kept = Descriptor(owning: ends[1]).release()
        XCTAssertGreaterThanOrEqual(fcntl(kept, F_GETFD), 0)
        close(kept)
        XCTAssertThrowsError(try Descriptor(checking: open("/nonexistent", O_RDONLY), "open", "/nonexistent").release()) {
            XCTAssertEqual("\($0)", "open /nonexistent: No such file or directory")
        }
    }

    func testSharedMemoryIsShared() throws {
        let file = try memoryFile("test", bytes: 8192)
        let one = try MappedMemory.shared(file.raw, length: 8192, what: "a test")
        let two = try MappedMemory.shared(file.raw, length: 8192, what: "a test")
        withExtendedLifetime((one, two)) {
            one.base.storeBytes(of: 0x1122_3344_5566_7788, toByteOffset: 4096, as: UInt64.self)
            XCTAssertEqual(two.base.load(fromByteOffset: 4096, as: UInt64.self), 0x1122_3344_5566_7788)
        }
        XCTAssertThrowsError(try MappedMemory.shared(-1, length: 8192, what: "nothing"))
        let fresh = try MappedMemory.anonymous(4096)
        withExtendedLifetime(fresh) { XCTAssertEqual(fresh.base.load(as: UInt64.self), 0) }
    }
}
