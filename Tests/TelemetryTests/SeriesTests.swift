import Foundation
import XCTest
@testable import Telemetry

final class SeriesTests: XCTestCase {
    private func samples(_ count: Int) -> [Sample] {
        (0..<count).map { number in
            var sample = Sample(time: 1_700_000_000_000 + UInt64(number) * 5000, values: ["steady": 1, "moving_ms": Double(number) / 4])
            if number % 3 != 0 { sample.values["now_and_then"] = Double(number % 2) }
            if number > 4 { sample.values["later_count"] = -0.5 }
            return sample
        }
    }

    /// What rows say, as samples.
    private func read(_ series: Series, since: UInt64 = 0, mostValues: Int = .max) throws -> [Sample] {
        let rows = try series.rows(since: since, mostValues: mostValues)
        return rows.rows.map { row in
            Sample(time: row.time, values: Dictionary(uniqueKeysWithValues: zip(rows.columns, row.values).compactMap { name, value in value.map { (name, Double($0)) } }))
        }
    }

    private func bytes(_ samples: [Sample]) -> [UInt8] {
        var encoder = SeriesEncoder()
        return SeriesFormat.header + encoder.label("web1") + samples.flatMap { encoder.row($0) }
    }

    private func decode(_ bytes: [UInt8]) throws -> (samples: [Sample], valid: Int) {
        var decoder = try SeriesDecoder(bytes, file: "t")
        var found: [Sample] = []
        while let time = decoder.next() {
            found.append(Sample(time: time, values: Dictionary(uniqueKeysWithValues: zip(decoder.state.columns, decoder.state.last).compactMap { name, value in value.map { (name, Double($0)) } })))
        }
        return (found, decoder.validBytes)
    }

    func testTheFormatByField() {
        let first = Sample(time: 0x0102, values: ["a_ms": 1.5])
        var encoder = SeriesEncoder()
        let columns: [UInt8] = [2, /* count */ 1, 0, /* length, name */ 4, 0x61, 0x5f, 0x6d, 0x73]
        let row: [UInt8] = [3, /* time */ 2, 1, 0, 0, 0, 0, 0, 0, /* columns */ 1, 0, /* present */ 1, /* changed */ 1, /* 1.5 */ 0, 0, 0xc0, 0x3f]
        XCTAssertEqual(encoder.row(first), SeriesFormat.record(columns) + SeriesFormat.record(row))
        let same: [UInt8] = [3, 3, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0]
        XCTAssertEqual(encoder.row(Sample(time: 0x0103, values: ["a_ms": 1.5])), SeriesFormat.record(same))
        let absent: [UInt8] = [3, 4, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
        XCTAssertEqual(encoder.row(Sample(time: 0x0104)), SeriesFormat.record(absent))
        XCTAssertEqual(SeriesFormat.record([9]).prefix(5), [1, 0, 0, 0, 9])
        XCTAssertEqual(SeriesFormat.record([9]).count, 13)
        XCTAssertEqual(SeriesFormat.header, [0x53, 0x56, 0x4b, 0x50, 1, 0, 0, 0])
    }

    func testWhatWasWrittenIsReadAgain() throws {
        let all = samples(20), encoded = bytes(all)
        let decoded = try decode(encoded)
        XCTAssertEqual(decoded.samples, all)
        XCTAssertEqual(decoded.valid, encoded.count)
    }

    func testATailCutAtAnyByteIsAPrefix() throws {
        let all = samples(8), encoded = bytes(all)
        var seen: Set<Int> = []
        for length in 0..<encoded.count {
            let decoded = try decode(Array(encoded[..<length]))
            XCTAssertEqual(decoded.samples, Array(all.prefix(decoded.samples.count)), "cut at \(length)")
            XCTAssertLessThanOrEqual(decoded.valid, length)
            seen.insert(decoded.samples.count)
        }
        XCTAssertEqual(seen, Set(0..<all.count), "one row less at each step")
    }

    func testAByteThatChangedEndsTheReading() throws {
        let all = samples(8), encoded = bytes(all)
        for place in SeriesFormat.headerBytes..<encoded.count {
            var damaged = encoded
            damaged[place] ^= 0x10
            let decoded = try decode(damaged)
            XCTAssertLessThan(decoded.samples.count, all.count, "byte \(place)")
            XCTAssertEqual(decoded.samples, Array(all.prefix(decoded.samples.count)), "byte \(place)")
        }
    }

    func testRecordsWithARightChecksumAndWrongContent() throws {
        func valid(_ bodies: [UInt8]...) throws -> Int { try decode(SeriesFormat.header + bodies.flatMap { SeriesFormat.record($0) }).samples.count }
        let column: [UInt8] = [2, 1, 0, 1, 0x61]
        let time: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0]
        XCTAssertEqual(try valid(column, [3] + time + [1, 0, 1, 1, 0, 0, 0, 0]), 1)
        XCTAssertEqual(try valid([7]), 0, "unknown kind")
        XCTAssertEqual(try valid(column, [3] + time + [2, 0, 1, 1, 0, 0, 0, 0]), 0, "more columns than there are")
        XCTAssertEqual(try valid(column, [3] + time + [1, 0, 1, 1, 0, 0, 0]), 0, "a number is short")
        XCTAssertEqual(try valid(column, [3] + time + [1, 0, 1, 1, 0, 0, 0, 0, 0]), 0, "a byte too many")
        XCTAssertEqual(try valid(column, [3] + time + [1, 0, 1, 0]), 0, "unchanged from nothing")
        XCTAssertEqual(try valid([2, 2, 0, 1, 0x61], [3] + time + [1, 0, 0, 0]), 0, "a name is missing")
        XCTAssertEqual(try valid([2, 0xff, 0xff, 1, 0x61]), 0, "too many columns")
        XCTAssertEqual(try decode(SeriesFormat.header + [0xff, 0xff, 0xff, 0xff] + [UInt8](repeating: 0, count: 64)).samples.count, 0, "a length beyond the ceiling")
    }

    func testFilesOfOthersAreNamed() {
        XCTAssertThrowsError(try SeriesDecoder(Array("#!/bin/sh".utf8), file: "/x/y")) { XCTAssertTrue("\($0)".contains("/x/y is no series"), "\($0)") }
        XCTAssertThrowsError(try SeriesDecoder(Array("SVKP".utf8) + [2, 0, 0, 0], file: "/x/y")) { XCTAssertTrue("\($0)".contains("version 2"), "\($0)") }
    }

    // MARK: On disk

    func testItGoesOnAfterARestartAndCutsATornTail() throws {
        let tree = try HostTree()
        let folder = tree.root + "/s", all = samples(12)
        let first = Series(folder: folder)
        for sample in all[..<6] { try first.append(sample, label: "web1") }
        let path = try XCTUnwrap(Series.names(in: folder).first.map { "\(folder)/\($0)" })
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        // As after a crash: the last record is not all there.
        try whole.dropLast(5).write(to: URL(fileURLWithPath: path))
        XCTAssertEqual(try read(Series(folder: folder)), Array(all[..<5]))
        let second = Series(folder: folder)
        for sample in all[6...] { try second.append(sample, label: "web1") }
        XCTAssertEqual(Series.names(in: folder).count, 1)
        XCTAssertEqual(try read(second), Array(all[..<5]) + Array(all[6...]))
        XCTAssertEqual(try second.rows(since: 0).label, "web1")
    }

    func testItStaysBelowItsCeilingAndKeepsTheNewest() throws {
        let tree = try HostTree()
        let folder = tree.root + "/s", ceiling = 64 << 10
        let series = Series(folder: folder, ceiling: ceiling)
        let all = (0..<4000).map { Sample(time: 1_000_000 + UInt64($0), values: ["a": Double($0), "b": Double($0 % 7)]) }
        var largest = 0
        for sample in all {
            try series.append(sample, label: "x")
            if sample.time % 500 == 0 {
                largest = max(largest, try Series.names(in: folder).reduce(0) { try $0 + Data(contentsOf: URL(fileURLWithPath: "\(folder)/\($1)")).count })
            }
        }
        XCTAssertLessThanOrEqual(largest, ceiling + 8 * 200)
        let kept = try read(series)
        XCTAssertGreaterThan(kept.count, 500)
        XCTAssertLessThan(kept.count, all.count)
        XCTAssertEqual(kept, Array(all.suffix(kept.count)))
        // Pages: together they are the whole.
        var pages: [Sample] = [], since: UInt64 = 0
        for _ in 0..<1000 {
            let page = try read(series, since: since, mostValues: 301)
            guard let last = page.last else { break }
            XCTAssertLessThanOrEqual(page.count, 151)
            pages += page
            since = last.time + 1
        }
        XCTAssertEqual(pages, kept)
        XCTAssertEqual(try read(series, since: all[3900].time), Array(all[3900...]))
    }

    func testAClockThatWasSetBack() throws {
        let tree = try HostTree()
        let series = Series(folder: tree.root + "/s")
        let times: [UInt64] = [5000, 6000, 2000, 3000]
        for time in times { try series.append(Sample(time: time, values: ["a": 1]), label: "x") }
        XCTAssertEqual(try read(series).map(\.time), times)
        let again = Series(folder: tree.root + "/s")
        try again.append(Sample(time: 4000, values: ["a": 1]), label: "x")
        XCTAssertEqual(try read(again).map(\.time), times + [4000])
    }

    func testAStoreKnowsItsSubjects() throws {
        let tree = try HostTree()
        let store = SeriesStore(folder: tree.root + "/telemetry")
        let uuid = "0a7a2f6e-6b2c-4a57-9d6b-3c1f0c6f2a11"
        XCTAssertNil(store.subject(labelled: "web1"))
        store.append(Sample(time: 1, values: ["p_a": 1]), to: uuid, label: "old")
        store.append(Sample(time: 2, values: ["p_a": 2]), to: uuid, label: "web1")
        store.append(Sample(time: 2, values: ["a": 2]), to: SeriesStore.host, label: "b")
        XCTAssertEqual(store.subjects, [uuid, "host"])
        XCTAssertEqual(store.subject(labelled: "web1"), uuid)
        XCTAssertNil(store.subject(labelled: "old"), "renamed since")
        XCTAssertNil(store.subject(labelled: "b"), "a host is no domain")
        XCTAssertTrue(store.has(uuid))
        try FileManager.default.setAttributes([.modificationDate: Date(timeIntervalSinceNow: -8 * 86_400)],
                                              ofItemAtPath: "\(store.folder)/\(uuid)/\(try XCTUnwrap(Series.names(in: "\(store.folder)/\(uuid)").first))")
        store.prune()
        XCTAssertEqual(store.subjects, ["host"])
        store.append(Sample(time: 3, values: ["p_a": 3]), to: uuid, label: "web1")
        XCTAssertEqual(try store.rows(of: uuid, since: 0, mostValues: 100).rows.map(\.time), [3], "it came back")
    }

    func testPairsAsRows() {
        let pair = PairSample(uuid: "u", domain: "web1", peer: "b", primary: Sample(time: 5, values: ["x_ms": 1, "vcpu": 2]), shadow: Sample(time: 4, values: ["x_ms": 3]))
        XCTAssertEqual(pair.flat, Sample(time: 5, values: ["p_x_ms": 1, "p_vcpu": 2, "s_x_ms": 3]))
    }
}
