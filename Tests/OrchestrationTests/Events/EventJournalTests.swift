import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Orchestration

final class EventJournalTests: XCTestCase {
    private var folder = ""
    private var file: String { folder + "/events.jsonl" }

    override func setUpWithError() throws {
        folder = NSTemporaryDirectory() + "/events-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }

    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    private func opened() throws -> EventJournal {
        let journal = EventJournal()
        try journal.open(folder: folder)
        return journal
    }

    private func all(_ journal: EventJournal, after cursor: UInt64 = 0) -> [ServiceEvent] {
        var events: [ServiceEvent] = [], cursor = cursor
        while true {
            let part = journal.next(after: cursor, limit: 100, until: .now)
            if part.cursor == cursor { return events }
            events += part.events
            cursor = part.cursor
        }
    }

    private func flush(_ journal: EventJournal) { journal.flush(until: MonotonicTime.now.adding(milliseconds: 5000)) }

    func testRecordAndRead() {
        let journal = EventJournal()
        journal.record(kind: .began, domain: "web1", uuid: "u1", message: "one")
        journal.record(kind: "drift", domain: "db", uuid: "u2", message: "two", details: ["clock_ms": "31"])
        journal.record(kind: .serviceStopping, message: "three")
        let events = all(journal)
        XCTAssertEqual(events.map(\.sequence), [1, 2, 3])
        XCTAssertEqual(events.map(\.message), ["one", "two", "three"])
        XCTAssertEqual(events[1].details, ["clock_ms": "31"])
        XCTAssertNil(events[2].domain)
        XCTAssertEqual(journal.counts["drift"], 1)
        XCTAssertEqual(journal.counts[.failover], 0, "counted from 0, so that the first one is an increase")
        XCTAssertEqual(journal.next(after: 0, limit: 10, until: .now) { $0.domain == "db" }.events.map(\.sequence), [2])
        XCTAssertEqual(all(journal, after: journal.cursor(since: nil, last: 1)).map(\.message), ["three"])
        XCTAssertEqual(all(journal, after: journal.cursor(since: "2000-01-01T00:00:00.000Z")).count, 3)
        XCTAssertEqual(all(journal, after: journal.cursor(since: "2999-01-01T00:00:00.000Z")).count, 0)
    }

    func testTextIsCut() {
        let event = EventJournal().record(kind: .began, message: String(repeating: "m", count: 1 << 20),
                                          details: Dictionary(uniqueKeysWithValues: (0..<100).map { ("key\(100 + $0)", String(repeating: "v", count: 100_000)) }))
        XCTAssertEqual(event.message.count, EventJournal.longestMessage)
        XCTAssertEqual(event.details?.count, EventJournal.mostDetails)
        XCTAssertEqual(event.details?["key100"]?.count, EventJournal.longestDetail)
    }

    /// One who reads too slowly gets the rest, and the number of what it lost.
    func testSlowReaderLosesTheOldest() {
        let journal = EventJournal()
        for number in 1...EventJournal.capacity + 1000 { journal.record(kind: "x", message: "\(number)") }
        let part = journal.next(after: 10, limit: 50, until: .now)
        XCTAssertEqual(UInt64(part.events.first?.message ?? ""), 10 + part.lost + 1)
        XCTAssertGreaterThanOrEqual(part.lost, 1000 - 10 - 256)
        XCTAssertEqual(part.events.count, 50)
        XCTAssertEqual(all(journal, after: part.cursor).last?.message, "\(EventJournal.capacity + 1000)")
        XCTAssertLessThan(all(journal, after: 0).count, EventJournal.capacity + 256, "there is a ceiling")
        // A follower of a journal that is gone is not kept waiting for numbers that come in a year.
        XCTAssertEqual(journal.next(after: 1 << 60, limit: 10, until: .now).cursor, UInt64(EventJournal.capacity + 1000))
    }

    func testFollowerIsWoken() {
        let journal = EventJournal()
        startThread("recorder") {
            usleep(100_000)
            journal.record(kind: .swap, message: "now")
        }
        let begin = MonotonicTime.now
        let part = journal.next(after: 0, limit: 10, until: begin.adding(milliseconds: 10_000))
        XCTAssertEqual(part.events.map(\.message), ["now"])
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: begin), 5000)
        XCTAssertEqual(journal.next(after: part.cursor, limit: 10, until: MonotonicTime.now.adding(milliseconds: 30)).events.count, 0)
    }

    // MARK: The file

    func testSurvivesARestart() throws {
        let first = try opened()
        for number in 1...300 { first.record(kind: .degraded, domain: "größe\n\"x\"", message: "\(number)\nline") }
        flush(first)
        XCTAssertEqual(try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n").count, 300)

        let second = EventJournal()
        second.record(kind: .began, message: "before it was opened")
        try second.open(folder: folder)
        second.record(kind: .serviceStarted, message: "again")
        let events = all(second)
        XCTAssertEqual(events.map(\.sequence), Array(1...302))
        XCTAssertEqual(events[299].message, "300\nline")
        XCTAssertEqual(events[299].domain, "größe\n\"x\"")
        XCTAssertEqual(events.suffix(2).map(\.message), ["before it was opened", "again"])
        XCTAssertEqual(second.counts[.degraded], 0, "counts are this service's own")
        flush(second)
        XCTAssertEqual(try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n").count, 302)
    }

    /// Killed in the middle of a write, at every byte of it: the events before are there, what is recorded next is whole.
    func testKilledMidWrite() throws {
        let journal = try opened()
        for number in 1...3 { journal.record(kind: .swap, domain: "web1", message: "event \(number)", details: ["outage_ms": "\(number)"]) }
        flush(journal)
        let whole = try Data(contentsOf: URL(fileURLWithPath: file))
        let lastLine = try XCTUnwrap(whole.dropLast().lastIndex(of: UInt8(ascii: "\n"))) + 1
        for cut in lastLine...whole.count {
            try whole[..<cut].write(to: URL(fileURLWithPath: file))
            let next = try opened()
            next.record(kind: .swap, message: "after the crash")
            flush(next)
            let kept = cut == whole.count ? 3 : 2
            XCTAssertEqual(all(next).map(\.message), (1...kept).map { "event \($0)" } + ["after the crash"], "cut at \(cut)")
            XCTAssertEqual(all(next).map(\.sequence), Array(1...UInt64(kept + 1)), "cut at \(cut)")
            let text = try String(contentsOfFile: file, encoding: .utf8)
            XCTAssertEqual(text.split(separator: "\n").count, kept + 1, text)
            for line in text.split(separator: "\n") { XCTAssertNoThrow(try JSONSerialization.jsonObject(with: Data(line.utf8)), String(line)) }
        }
    }

    func testRotationHasACeiling() throws {
        let journal = try opened()
        for number in 1...EventFile.linesInFile * 3 {
            journal.record(kind: "x", message: "\(number)")
            if number % 2000 == 0 { flush(journal) }
        }
        flush(journal)
        let lines = try [file, file + ".1"].map { try String(contentsOfFile: $0, encoding: .utf8).split(separator: "\n").count }
        XCTAssertTrue(lines.allSatisfy { $0 < EventFile.linesInFile + 256 }, "\(lines)")
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder).sorted(), ["events.jsonl", "events.jsonl.1"])
        let reopened = all(try opened())
        XCTAssertEqual(reopened.last?.message, "\(EventFile.linesInFile * 3)")
        XCTAssertEqual(reopened.count, lines.reduce(0, +))
        // Killed between the two steps of a rotation.
        try FileManager.default.removeItem(atPath: file)
        let after = try opened()
        XCTAssertEqual(after.record(kind: "x", message: "next").sequence, all(after).dropLast().last.map { $0.sequence + 1 })
    }

    /// Lines that somebody wrote into it are passed over; numbers that do not follow each other are not counted on.
    func testForeignLines() throws {
        try "no json\n{\"sequence\":18446744073709551615,\"time\":\"t\",\"kind\":\"x\",\"message\":\"m\"}\n\u{0}\u{1}\n{}\n{\"sequence\":7,\"time\":\"t\",\"kind\":\"x\",\"message\":\"m\"}\n"
            .write(toFile: file, atomically: true, encoding: .utf8)
        let journal = try opened()
        XCTAssertEqual(journal.record(kind: "x", message: "n").sequence, 8)
        XCTAssertEqual(all(journal).map(\.sequence), [7, 8])
    }

    /// No room, no folder: whoever records does not notice, and what is in memory is there.
    func testAFileThatCannotBeWritten() throws {
        let journal = try opened()
        try FileManager.default.removeItem(atPath: folder)
        journal.record(kind: .degraded, message: "kept in memory")
        flush(journal)
        XCTAssertEqual(all(journal).map(\.message), ["kept in memory"])
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        journal.record(kind: .protected, message: "written again")
        flush(journal)
        XCTAssertTrue(try String(contentsOfFile: file, encoding: .utf8).contains("written again"))
    }

    func testRefusalIsNoted() {
        let journal = EventJournal()
        XCTAssertThrowsError(try journal.noting(.refused, domain: "web1") { throw ControlFailure("It has no disk", advice: "Give it one") })
        XCTAssertEqual(all(journal).map(\.kind), [.refused])
        XCTAssertEqual(all(journal).first?.message, "It has no disk. Give it one")
        XCTAssertEqual(journal.noting(.refused, domain: "web1") { 7 }, 7)
        XCTAssertEqual(all(journal).count, 1)
    }
}
