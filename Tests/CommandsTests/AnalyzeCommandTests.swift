import Foundation
import XCTest
@testable import Commands

final class AnalyzeCommandTests: XCTestCase {
    private var folder = URL(fileURLWithPath: "/")
    private let harness = Harness()

    override func setUpWithError() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("analyze-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    override func tearDownWithError() throws { try FileManager.default.removeItem(at: folder) }

    private func write(_ name: String, _ text: String) throws {
        try text.write(to: folder.appendingPathComponent(name), atomically: true, encoding: .utf8)
    }

    private func pairs(_ extra: String...) -> Outcome { harness.run(["analyze", "pairs", folder.path, "--step", "60", "--out", "-"] + extra) }

    func testWritesOneRowASampleInTheOrderOfTheFiles() throws {
        try write("b.csv", "timestamp,p_cpu,s_cpu\n0,1,1\n60,,2\n")
        try write("a.csv", "timestamp,s_cpu,p_cpu\r\n5,1,nan\r\n")
        let outcome = pairs()
        XCTAssertEqual(outcome.code, 0, outcome.err)
        XCTAssertEqual(outcome.out, "scenario,timestamp,score\na,5,0.0\nb,0,0.0\nb,60,0.0\n")
        XCTAssertTrue(outcome.err.contains("3 rows of 2 files"), outcome.err)
    }

    func testAFaultScoresOneAndMore() throws {
        var text = "timestamp,p_disk_latency,s_disk_latency\n"
        for row in 0..<400 { text += "\(row * 60),\((row < 300 ? 10 : 20) + row % 3),\(11 + (row + 1) % 3)\n" }
        try write("x.csv", text)
        let scores = pairs().out.split(separator: "\n").dropFirst().compactMap { $0.split(separator: ",").last.flatMap { Double($0) } }
        XCTAssertEqual(scores.count, 400)
        XCTAssertLessThan(scores[..<300].max() ?? 9, 1)
        XCTAssertGreaterThanOrEqual(scores[300...].max() ?? 0, 1)
    }

    func testSeries() throws {
        try write("x.csv", "timestamp,value\n" + (0..<600).map { "\($0 * 300),\($0 < 500 ? 5 + $0 % 4 : 90)\n" }.joined())
        let outcome = harness.run(["analyze", "series", folder.path, "--out", folder.path + "/scores", "-q"])
        XCTAssertEqual(outcome.code, 0, outcome.err)
        XCTAssertEqual(outcome.out + outcome.err, "")
        let lines = try String(contentsOfFile: folder.path + "/scores", encoding: .utf8).split(separator: "\n")
        XCTAssertEqual(lines.first, "series,timestamp,score")
        let scores = lines.dropFirst().compactMap { $0.split(separator: ",").last.flatMap { Double($0) } }
        XCTAssertEqual(scores.count, 600)
        XCTAssertTrue(scores.allSatisfy { (0...1).contains($0) })
        XCTAssertTrue(scores[500..<505].contains { $0 >= 0.5 })
    }

    func testBadFilesAreNamedWithTheLine() throws {
        let cases: [(text: String, message: String)] = [
            ("", "x.csv: Empty file"),
            ("time,p_cpu,s_cpu\n", "x.csv:1: The first column is 'time'"),
            ("timestamp,p_cpu\n", "x.csv:1: Column 'p_cpu' has no counterpart 's_cpu'"),
            ("timestamp,s_cpu\n", "x.csv:1: Column 's_cpu' has no counterpart 'p_cpu'"),
            ("timestamp,cpu\n", "x.csv:1: Column 'cpu' belongs to no side"),
            ("timestamp,p_cpu,p_cpu\n", "x.csv:1: Column 'p_cpu' stands there twice"),
            ("timestamp\n", "x.csv:1: No KPI"),
            ("timestamp,p_cpu,s_cpu\n0,1,1\n60,1\n", "x.csv:3: 2 fields, but the header has 3"),
            ("timestamp,p_cpu,s_cpu\n0,1,one\n", "x.csv:2: 'one' in column 's_cpu' is no number"),
            ("timestamp,p_cpu,s_cpu\nnow,1,1\n", "x.csv:2: 'now' is no time"),
            ("timestamp,p_cpu,s_cpu\n60,1,1\n60,1,1\n", "x.csv:3: Time 60 does not come after the row before"),
            ("timestamp,p_cpu,s_cpu\n60,1,1\n0,1,1\n", "x.csv:3: Time 0 does not come after the row before"),
            ("timestamp,p_cpu,s_cpu\n" + (0..<20).map { "\($0 * 60000),1,1\n" }.joined(), "x.csv: Its rows are 60000.0 s apart, and --step says 60.0"),
        ]
        for (text, message) in cases {
            try write("x.csv", text)
            let outcome = pairs()
            XCTAssertEqual(outcome.code, 1, message)
            XCTAssertTrue(outcome.err.contains(message), outcome.err)
            XCTAssertEqual(outcome.out, "")
        }
    }

    func testFilesWithoutRowsGiveNoRows() throws {
        try write("x.csv", "timestamp,p_cpu,s_cpu\n")
        XCTAssertEqual(pairs().out, "scenario,timestamp,score\n")
    }

    func testUsage() {
        for words in [["pairs", folder.path, "--out", "-"], ["pairs", folder.path, "--out", "-", "--step", "0"],
                      ["series", folder.path, "--out", "-", "--step", "60"], ["both", folder.path, "--out", "-"], ["series", folder.path]] {
            XCTAssertEqual(harness.run(["analyze"] + words).code, 64, "\(words)")
        }
        XCTAssertTrue(harness.run(["analyze", "series", folder.path, "--out", "-"]).err.contains("No .csv file"))
        XCTAssertTrue(harness.run(["analyze", "series", "/nowhere", "--out", "-"]).err.contains("Cannot read folder '/nowhere'"))
    }
}
