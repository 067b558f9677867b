import CLinux
import Foundation
import XCTest
@testable import Platform

final class SubprocessTests: XCTestCase {
    private func pipe() throws -> (reading: Int32, writing: Int32) {
        var ends: [Int32] = [-1, -1]
        guard Glibc.pipe(&ends) == 0 else { throw SystemError("pipe") }
        for end in ends { _ = clinux_set_cloexec(end, 1) }
        addTeardownBlock { for end in ends { close(end) } }
        return (ends[0], ends[1])
    }

    private func text(_ fd: Int32, count: Int) throws -> String {
        guard try !Platform.wait(fd, for: .readable, until: .now.adding(milliseconds: 5000)).isEmpty else { return "(nothing)" }
        var bytes = [UInt8](repeating: 0, count: count)
        let n = read(fd, &bytes, count)
        return String(decoding: bytes.prefix(max(0, n)), as: UTF8.self)
    }

    private func soon(_ ms: Double = 5000) -> MonotonicTime { .now.adding(milliseconds: ms) }

    func testExitStatus() throws {
        let child = try Subprocess.spawn("/bin/sh", arguments: ["-c", "exit 7"], descriptors: [])
        XCTAssertEqual(child.wait(until: soon()), "exit 7")
        XCTAssertEqual(child.wait(until: soon()), "ended", "A second wait must not hang")
        child.signal(SIGTERM)
    }

    func testMissingProgram() {
        XCTAssertThrowsError(try Subprocess.spawn("/nonexistent/program", arguments: [], descriptors: [])) { error in
            XCTAssertEqual((error as? SystemError)?.code, ENOENT)
            XCTAssertEqual("\(error)", "posix_spawn /nonexistent/program: No such file or directory")
        }
    }

    func testSignalAndEndedDescriptor() throws {
        let child = try Subprocess.spawn("/bin/sleep", arguments: ["60"], descriptors: [])
        XCTAssertNil(child.wait(until: soon(20)))
        XCTAssertTrue(try Platform.wait(child.endedDescriptor, for: .readable, until: soon(20)).isEmpty)
        child.signal(SIGKILL)
        XCTAssertFalse(try Platform.wait(child.endedDescriptor, for: .readable, until: soon()).isEmpty)
        XCTAssertEqual(child.wait(until: soon()), "signal 9")
    }

    func testGroupAndSignalMaskOfItsOwn() throws {
        let out = try pipe()
        let child = try Subprocess.spawn("/bin/sh", arguments: ["-c", "grep SigBlk /proc/self/status >&3; cut -d ' ' -f 5 /proc/$$/stat >&3"],
                                         descriptors: [out.writing])
        XCTAssertEqual(child.wait(until: soon()), "exit 0")
        let answer = try text(out.reading, count: 200)
        XCTAssertTrue(answer.contains("SigBlk:\t0000000000000000"), answer)
        XCTAssertTrue(answer.hasSuffix("\(child.pid)\n"), answer)
    }

    func testDescriptorsArriveAs3And4WhateverTheirNumbers() throws {
        let first = try pipe()
        let second = try pipe()
        // Crossed on purpose: each source stands where the other's target is, or in the way of the numbers in between.
        for numbers in [(4, 3), (3, 4), (4, 5), (512, 513), (513, 512), (600, 512)] as [(Int32, Int32)] {
            let saved = [dup(3), dup(4), dup(5)]
            XCTAssertGreaterThanOrEqual(dup2(first.writing, 700), 0)
            XCTAssertGreaterThanOrEqual(dup2(second.writing, 701), 0)
            XCTAssertGreaterThanOrEqual(dup2(700, numbers.0), 0)
            XCTAssertGreaterThanOrEqual(dup2(701, numbers.1), 0)
            defer {
                for number in [numbers.0, numbers.1] where number > 5 { close(number) }
                for (index, fd) in saved.enumerated() where fd >= 0 {
                    dup2(fd, 3 + Int32(index))
                    close(fd)
                }
                close(700)
                close(701)
            }
            let child = try Subprocess.spawn("/bin/sh", arguments: ["-c", "printf one >&3; printf two >&4"],
                                             descriptors: [numbers.0, numbers.1])
            XCTAssertEqual(child.wait(until: soon()), "exit 0")
            XCTAssertEqual(try text(first.reading, count: 10), "one", "\(numbers)")
            XCTAssertEqual(try text(second.reading, count: 10), "two", "\(numbers)")
        }
    }

    func testNothingElseIsInherited() throws {
        let out = try pipe()
        let child = try Subprocess.spawn("/bin/sh", arguments: ["-c", "ls /proc/$$/fd | tr '\\n' ' ' >&3"], descriptors: [out.writing, out.writing])
        XCTAssertEqual(child.wait(until: soon()), "exit 0")
        // What XCTest itself left open without O_CLOEXEC is not our doing; nothing of ours may be there.
        let numbers = try text(out.reading, count: 400).split(separator: " ").compactMap { Int32($0) }
        let leaked = numbers.filter { $0 > 4 && fcntl($0, F_GETFD) < 0 }
        XCTAssertEqual(leaked.filter { $0 < 1000 && $0 != 10 && $0 != 255 }, [], "descriptors that only the child has")
    }

    func testForeignProcess() throws {
        XCTAssertTrue(processDescriptor(pid_t(Int32.max)) == nil)
        let child = try Subprocess.spawn("/bin/sleep", arguments: ["60"], descriptors: [])
        guard let watcher = processDescriptor(child.pid) else { return XCTFail("No pidfd") }
        let watch = watcher.release()
        child.signal(SIGTERM)
        XCTAssertFalse(try Platform.wait(watch, for: .readable, until: soon()).isEmpty)
        close(watch)
        XCTAssertEqual(child.wait(until: soon()), "signal 15")
    }
}

final class CapturedOutputTests: XCTestCase {
    func testWhatAProgramPrints() throws {
        let captured = try Subprocess.capture("/bin/sh", arguments: ["-c", "printf '%s|' \"$@\"; echo no >&2; exit 3", "x", "a b", "c'd"], limitMs: 10_000)
        XCTAssertEqual(String(decoding: captured.output, as: UTF8.self), "a b|c'd|")
        XCTAssertEqual(captured.status, "exit 3")
    }

    func testOneThatHangsIsKilled() throws {
        let begin = MonotonicTime.now
        XCTAssertThrowsError(try Subprocess.capture("/bin/sleep", arguments: ["60"], limitMs: 200)) { XCTAssertEqual(($0 as? SystemError)?.code, ETIMEDOUT) }
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: begin), 10_000)
    }

    func testOneThatPrintsWithoutEndIsEnded() throws {
        let captured = try Subprocess.capture("/bin/cat", arguments: ["/dev/zero"], limitMs: 30_000, ceilingKiB: 64)
        XCTAssertEqual(captured.output.count, 64 << 10)
        XCTAssertEqual(captured.status, "signal \(SIGXFSZ)")
    }
}
