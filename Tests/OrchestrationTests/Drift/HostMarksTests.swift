import ControlProtocol
import Foundation
import XCTest
@testable import Orchestration

final class HostMarksTests: XCTestCase {
    private var folder = ""
    override func setUp() { folder = NSTemporaryDirectory() + "/marks-\(UUID().uuidString)" }
    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }
    private func marks() -> HostMarks { HostMarks(stateDirectory: folder) }

    func testSuspectsSurviveARestart() throws {
        XCTAssertNil(marks().refusal("a"))
        try marks().suspect("a", "it burns")
        try marks().suspect("a", "it burns still")
        XCTAssertEqual(marks().suspects.map(\.reason), ["it burns still"])
        let refusal = try XCTUnwrap(marks().refusal("A"))
        XCTAssertTrue(refusal.message.hasPrefix("a is suspect since") && refusal.advice.contains("hosts clear a"), "\(refusal)")
        XCTAssertNil(marks().refusal("b"))
        XCTAssertEqual(Array(marks().exclusions.keys), ["a"])
        XCTAssertTrue(try marks().clear("A", isThisHost: false, now: 5))
        XCTAssertFalse(try marks().clear("a", isThisHost: false, now: 5))
        XCTAssertEqual(marks().suspects, [])
        XCTAssertEqual(marks().clearedAt, 0)
        try marks().clear("a", isThisHost: true, now: 7)
        XCTAssertEqual(marks().clearedAt, 7)
    }

    func testSwapsAreForgottenAfterAnHour() throws {
        let one = marks()
        try one.noteSwap("u", 1000)
        try one.noteSwap("v", 3000)
        XCTAssertEqual(marks().lastSwap("u"), 1000)
        try one.noteSwap("w", 1000 + 3600)
        XCTAssertNil(marks().lastSwap("u"))
        XCTAssertEqual(marks().lastSwap("v"), 3000)
        try one.forgetSwap("v")
        XCTAssertNil(marks().lastSwap("v"))
    }

    func testADamagedFileIsNoObstacle() throws {
        try marks().suspect("a", "x")
        try "{".write(toFile: folder + "/host/marks.json", atomically: true, encoding: .utf8)
        XCTAssertEqual(marks().suspects, [])
        XCTAssertNoThrow(try marks().suspect("b", "y"))
        XCTAssertEqual(marks().suspects.map(\.host), ["b"])
    }
}

final class DiagnosticBundleTests: XCTestCase {
    private var folder = ""
    override func setUp() { folder = NSTemporaryDirectory() + "/bundle-\(UUID().uuidString)" }
    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    private func output(_ words: String...) throws -> String {
        let process = Process(), pipe = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        (process.arguments, process.standardOutput) = (words, pipe)
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        XCTAssertEqual(process.terminationStatus, 0, "\(words)")
        return String(decoding: data, as: UTF8.self)
    }

    func testWhatIsInIt() throws {
        try FileManager.default.createDirectory(atPath: folder + "/kpi", withIntermediateDirectories: true)
        try "samples".write(toFile: folder + "/kpi/0", atomically: true, encoding: .utf8)
        let long = Data(repeating: UInt8(ascii: "x"), count: DiagnosticBundle.mostBytes) + Data("the end".utf8)
        try long.write(to: URL(fileURLWithPath: folder + "/long.log"))
        let path = try DiagnosticBundle(stateDirectory: folder, host: "a").make(texts: ["reason.txt": "it burns"], logs: ["qemu.log": folder + "/long.log", "none.log": folder + "/none"],
                                                                               folders: ["kpi-host": folder + "/kpi", "kpi-none": folder + "/none"])
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
        XCTAssertEqual(mode, 0o600)
        let names = Set(try output("tar", "-tzf", path).split(separator: "\n").map { $0.split(separator: "/").dropFirst().joined(separator: "/") })
        XCTAssertTrue(names.isSuperset(of: ["reason.txt", "qemu.log", "kpi-host/0"]), "\(names)")
        XCTAssertFalse(names.contains("none.log") || names.contains("kpi-none"), "\(names)")
        let root = URL(fileURLWithPath: path).lastPathComponent.replacingOccurrences(of: ".tar.gz", with: "")
        XCTAssertEqual(try output("tar", "-xzOf", path, root + "/reason.txt"), "it burns")
        let log = try output("tar", "-xzOf", path, root + "/qemu.log")
        XCTAssertEqual(log.utf8.count, DiagnosticBundle.mostBytes)
        XCTAssertTrue(log.hasSuffix("the end"))
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder + "/diagnose"), [URL(fileURLWithPath: path).lastPathComponent])
    }

    func testOldOnesGo() throws {
        let target = folder + "/diagnose"
        try FileManager.default.createDirectory(atPath: target + "/.a-20200101T000000000/kpi", withIntermediateDirectories: true)
        for year in 2001...2007 { try "".write(toFile: "\(target)/a-\(year)0101T000000000.tar.gz", atomically: false, encoding: .utf8) }
        let path = try DiagnosticBundle(stateDirectory: folder, host: "a").make(texts: ["reason.txt": "x"], logs: [:], folders: [:])
        let names = try FileManager.default.contentsOfDirectory(atPath: target).sorted()
        XCTAssertEqual(names.count, DiagnosticBundle.mostBundles, "\(names)")
        XCTAssertEqual(names.first, "a-20040101T000000000.tar.gz")
        XCTAssertEqual(names.last, URL(fileURLWithPath: path).lastPathComponent)
    }
}
