import Foundation
import XCTest

/// The ledger guest and its tool notice disks that are not of the same moment as the memory: other tests rely on it. Plain QEMU, no hosts.
final class LedgerDiskTests: XCTestCase {
    private var folder = ""
    private var running: [ChildProcess] = []

    override func setUpWithError() throws {
        if let obstacle = TwoHosts.obstacle { throw XCTSkip("End-to-end tests skipped: \(obstacle)") }
        folder = NSTemporaryDirectory() + "/shadow-virt-ledger-\(getpid())-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        continueAfterFailure = false
    }

    override func tearDown() {
        running.forEach(end)
        try? FileManager.default.removeItem(atPath: folder)
    }

    // MARK: Tests

    func testDisksOfAKilledGuestAreWhole() throws {
        try copy(TwoHosts.guests.get() + "/ledger.img", path("boot"))
        for disk in ["one", "two"] {
            XCTAssertTrue(FileManager.default.createFile(atPath: path(disk), contents: Data(count: 1 << 20)))
            try LedgerDisk.mark(path(disk))
        }
        let disks = [path("one"), path("two")]
        for generation in 1...2 {
            let qemu = try boot(["boot", "one", "two"], log: "log\(generation)")
            try waitForLines("D ", 8, in: "log\(generation)")
            end(qemu)
            XCTAssertEqual(corruptLines("log\(generation)"), [])
            let found = try LedgerDisk.check(disks, tick: lastTick("log\(generation)"))
            XCTAssertEqual(found.map(\.generation), [generation, generation])
        }
        XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: path("boot"))), try Data(contentsOf: URL(fileURLWithPath: TwoHosts.guests.get() + "/ledger.img")),
                       "without the mark it is left alone")

        let written = try XCTUnwrap(LedgerDisk.read(disks)[0].lastTick)
        XCTAssertTrue(try LedgerDisk.read([disks[0]], tick: written - 1)[0].problems[0].hasPrefix("Ahead: "))
        XCTAssertTrue(try LedgerDisk.read([disks[0]], tick: written + 30)[0].problems[0].hasPrefix("Behind: "))
        let file = try XCTUnwrap(FileHandle(forUpdatingAtPath: disks[0]))
        try file.seek(toOffset: (64 + 5) * 512 + 300)
        try file.write(contentsOf: Data([0xaa]))
        XCTAssertTrue(try LedgerDisk.read(disks)[0].problems[0].hasPrefix("Slot 5 is not whole"))
    }

    func testDisksOfAnotherMomentAreNoticed() throws {
        let disks = ["one", "two"]
        for disk in disks { try copy(TwoHosts.guests.get() + "/ledger-disk.img", path(disk)) }
        func keep(_ moment: String) throws { for disk in disks { try copy(path(disk), path("\(moment)-\(disk)")) } }
        func take(_ moments: [String]) throws { for (moment, disk) in zip(moments, disks) { try copy(path("\(moment)-\(disk)"), path(disk)) } }

        var ends: [Int32] = [0, 0]
        try require(pipe(&ends) == 0 && fcntl(ends[1], F_SETFD, FD_CLOEXEC) == 0, "No pipe")
        defer { close(ends[1]) }
        let qemu = try boot(disks, log: "log", ["-monitor", "stdio"], input: ends[0])
        close(ends[0])
        try waitForLines("D ", 10, in: "log")  // more than 1024 records, usually
        qemu.signal(SIGSTOP)
        try keep("before")
        qemu.signal(SIGCONT)
        try waitForLines("D ", 12, in: "log")
        let migrate = Array("migrate \"exec:cat >\(path("part")) && mv \(path("part")) \(path("memory"))\"\n".utf8)
        try require(write(ends[1], migrate, migrate.count) == migrate.count, "QEMU's monitor takes no command")
        try waitUntil("The guest's memory is saved", limit: 30) { FileManager.default.fileExists(atPath: path("memory")) }
        let last = try lastTick("log")
        end(qemu)
        try keep("same")

        func resume(_ log: String, until line: String, _ count: Int) throws -> [String] {
            let qemu = try boot(disks, log: log, ["-incoming", "exec:cat \(path("memory"))"])
            try waitForLines(line, count, in: log)
            end(qemu)
            return corruptLines(log)
        }
        XCTAssertEqual(try resume("same", until: "D ", 8), [])
        try LedgerDisk.check(disks.map(path), tick: lastTick("same"))
        XCTAssertGreaterThan(try lastTick("same"), last)
        try keep("after")

        try take(["after", "after"])
        try assertNoticed(resume("ahead", until: "CORRUPT disk ", 1)) { $0 > $1 }
        try take(["before", "before"])
        try assertNoticed(resume("behind", until: "CORRUPT disk ", 1)) { $0 < $1 || $0 == 4_294_967_295 }
        try take(["same", "before"])
        let second = try resume("second behind", until: "CORRUPT disk ", 1)
        try assertNoticed(second) { $0 < $1 || $0 == 4_294_967_295 }
        XCTAssertGreaterThanOrEqual(try numbers(second[0])[1], 1024, "a slot of the second disk: \(second[0])")
    }

    // MARK: Parts

    private func path(_ name: String) -> String { "\(folder)/\(name)" }

    private func copy(_ from: String, _ to: String) throws {
        try? FileManager.default.removeItem(atPath: to)
        try FileManager.default.copyItem(atPath: from, toPath: to)
    }

    private func boot(_ disks: [String], log: String, _ more: [String] = [], input: Int32? = nil) throws -> ChildProcess {
        let drives = disks.flatMap { ["-drive", "file=\(path($0)),format=raw,if=virtio"] }
        let words = ["qemu-system-x86_64", "-enable-kvm", "-m", "64", "-display", "none", "-serial", "file:\(path(log))"] + drives + more
        running.append(try ChildProcess(words, err: path("errors"), input: input))
        return running.last!
    }

    private func end(_ qemu: ChildProcess) {
        qemu.signal(SIGKILL)
        _ = qemu.wait(limit: 5)
    }

    /// Whole lines only.
    private func lines(_ log: String) -> [String] {
        let text = String(decoding: FileManager.default.contents(atPath: path(log)) ?? Data(), as: UTF8.self)
        return text.split(separator: "\n", omittingEmptySubsequences: false).dropLast().map(String.init)
    }

    private func waitForLines(_ start: String, _ count: Int, in log: String) throws {
        try waitUntil("\(count) lines '\(start)' (\(lines(log).suffix(2)), \(FileManager.default.contents(atPath: path("errors")).map { String(decoding: $0, as: UTF8.self) } ?? ""))",
                      limit: 60) { lines(log).count { $0.hasPrefix(start) } >= count }
    }

    private func corruptLines(_ log: String) -> [String] { lines(log).filter { $0.hasPrefix("CORRUPT") || $0.hasPrefix("DISKERROR") } }

    private func lastTick(_ log: String) throws -> Int {
        try XCTUnwrap(lines(log).last { $0.hasPrefix("T ") }.flatMap { Int($0.dropFirst(2)) })
    }

    /// CORRUPT disk <vCPU> <index> <found> <expected>
    private func numbers(_ line: String) throws -> [Int] {
        let numbers = line.split(separator: " ").dropFirst(2).compactMap { Int($0) }
        try require(line.hasPrefix("CORRUPT disk ") && numbers.count == 4, "not about a disk: \(line)")
        return numbers
    }

    private func assertNoticed(_ corrupt: [String], _ matches: (_ found: Int, _ expected: Int) -> Bool) throws {
        let first = try numbers(XCTUnwrap(corrupt.first))
        // Expected to hold nothing of this boot yet.
        let expected = first[3] == 4_294_967_295 ? -1 : first[3]
        XCTAssertTrue(matches(first[2], expected), corrupt[0])
    }
}
