import Foundation
import XCTest
@testable import ReplicaStore

final class WriteJournalTests: FolderTestCase {
    private let hash = KeyedHash(secret: (0..<192).map { UInt8($0 ^ 0x55) })!
    private let session = UUID()
    private var path: String { folder + "/journal" }

    private func open(generation: UInt64 = 1, limit: Int = 1 << 20) throws -> WriteJournal {
        try WriteJournal(path: path, folder: folder, session: session, generation: generation, hash: hash, limit: limit)
    }

    private func append(_ journal: WriteJournal, _ epoch: UInt64, _ writes: [(DiskExtent, [UInt8])], accept: Bool = true) throws {
        let pointers = writes.map { write in
            let pointer = UnsafeMutableRawPointer.allocate(byteCount: max(1, write.1.count), alignment: 16)
            write.1.withUnsafeBytes { if let base = $0.baseAddress { memcpy(pointer, base, $0.count) } }
            return pointer
        }
        defer { pointers.forEach { $0.deallocate() } }
        let staged = zip(writes, pointers).map { write, pointer in
            WriteJournal.Staged(extent: write.0, bytes: write.0.kind == .data ? UnsafeRawPointer(pointer) : nil)
        }
        try journal.append(epoch: epoch, staged)
        if accept { journal.accept() }
    }

    private func bytes(_ count: Int, _ seed: UInt64) -> [UInt8] {
        var generator = SeededGenerator(seed: seed)
        return (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
    }

    private func epochs(_ journal: WriteJournal) throws -> [UInt64] { try journal.scan().map(\.record.epoch) }

    /// Three records of 4096, 8192 and 4096 bytes.
    private func three() throws -> WriteJournal {
        let journal = try open()
        try append(journal, 4, [data(0, bytes(100, 1)), zero(4096, 512)])
        try append(journal, 6, [data(9, bytes(5000, 2)), zero(0, 70000, kind: .trim), data(100, [1, 2, 3])])
        try append(journal, 7, [data(0, bytes(700, 3))])
        return journal
    }

    func testRecordsComeBackInOrderWithTheirData() throws {
        let journal = try three()
        let found = try journal.scan()
        XCTAssertEqual(found.map(\.record.epoch), [4, 6, 7])
        XCTAssertEqual(found.map(\.offset), [0, 4096, 12288])
        var seen: [(DiskExtent, [UInt8])] = []
        for located in found {
            try journal.forEachExtent(of: located) { entry, base in
                seen.append((entry.extent, base.map { Array(UnsafeRawBufferPointer(start: $0, count: entry.extent.length)) } ?? []))
            }
        }
        XCTAssertEqual(seen.map(\.0), [data(0, bytes(100, 1)).0, zero(4096, 512).0, data(9, bytes(5000, 2)).0,
                                       zero(0, 70000, kind: .trim).0, data(100, [1, 2, 3]).0, data(0, bytes(700, 3)).0])
        XCTAssertEqual(seen.map(\.1), [bytes(100, 1), [], bytes(5000, 2), [], [1, 2, 3], bytes(700, 3)])
    }

    func testMoreExtentsThanOneCallTakes() throws {
        let journal = try open()
        try append(journal, 1, (0..<2500).map { data(UInt64($0) * 512, [UInt8(truncatingIfNeeded: $0), 7]) })
        try append(journal, 2, [data(0, [1])])
        let found = try journal.scan()
        XCTAssertEqual(found.map(\.record.entries.count), [2500, 1])
        try journal.forEachExtent(of: found[0]) { entry, base in
            XCTAssertEqual(base?.load(as: UInt8.self), UInt8(truncatingIfNeeded: entry.extent.offset / 512))
        }
    }

    /// A power loss within the last record, at every byte: what stands behind is zeros, as in a file that was grown before, or an
    /// older generation's bytes, or there is nothing.
    func testATornTailIsDropped() throws {
        _ = try three()
        let whole = Array(try content(path)[..<16384])
        let older = bytes(4096, 99)
        // Where the last record ends, without its padding.
        let recordEnd = 12288 + 72 + 40 + 700
        for length in 12288..<recordEnd {
            for (number, rest) in [[], [UInt8](repeating: 0, count: 16384 - length), Array(older[(length - 12288)...])].enumerated() {
                if length % 7 != 0, number != 1 { continue }
                try put(whole[..<length] + rest, path)
                XCTAssertEqual(try epochs(open()), [4, 6], "\(length) bytes, rest \(number)")
            }
        }
        try put(Array(whole[..<recordEnd]), path)
        XCTAssertEqual(try epochs(open()), [4, 6, 7], "The padding says nothing")
        for length in [0, 1, 71, 72, 200, 4095] {
            try put(Array(whole[..<length]), path)
            XCTAssertEqual(try epochs(open()), length < 252 ? [] : [4])
        }
    }

    func testGarbageInTheMiddleIsAnErrorThatNamesTheOffset() throws {
        _ = try three()
        let whole = try content(path)
        for (place, reason) in [(4096 + 3, "checksum of a record's header"), (4096 + 9, "magic"), (4096 + 72 + 120 + 4000, "checksum of a data of 5000")] {
            var damaged = whole
            damaged[place] ^= 0x10
            try put(damaged, path)
            XCTAssertThrowsError(try epochs(open())) { error in
                guard case .damagedJournal(_, 4096, let what)? = error as? ReplicaError else { return XCTFail("\(error)") }
                XCTAssertTrue(what.contains(reason) && what.hasSuffix("but a record follows at 12288"), what)
            }
        }
    }

    /// Whatever changes, what comes back was written: whole records from the front on, or an error.
    func testSeededMutations() throws {
        let original = try three().scan().map(\.record)
        let whole = Array(try content(path)[..<16384])
        var generator = SeededGenerator(seed: 20)
        for round in 0..<400 {
            var changed = whole
            for _ in 0..<Int.random(in: 1...4, using: &generator) {
                let at = Int.random(in: 0..<changed.count, using: &generator)
                switch Int.random(in: 0..<4, using: &generator) {
                case 0: changed[at] = UInt8.random(in: 0...255, using: &generator)
                case 1: changed.removeSubrange(at..<min(changed.count, at + Int.random(in: 1...5000, using: &generator)))
                case 2: changed.insert(contentsOf: whole[..<Int.random(in: 1...5000, using: &generator)], at: at)
                default: changed[at] ^= 1 << UInt8.random(in: 0...7, using: &generator)
                }
                if changed.isEmpty { changed = [0] }
            }
            try put(changed, path)
            do {
                let found = try open().scan().map(\.record)
                XCTAssertEqual(found, Array(original.prefix(found.count)), "round \(round)")
            } catch is ReplicaError {
                continue
            }
        }
    }

    func testAnOlderGenerationIsNoRecord() throws {
        let journal = try three()
        journal.restart(generation: 2, session: session)
        XCTAssertEqual(try epochs(journal), [])
        try append(journal, 8, [data(0, [1])])
        XCTAssertEqual(try epochs(journal), [8], "Behind it stand whole records of the generation before")
    }

    func testALeftoverIsOverwrittenOrErased() throws {
        let journal = try three()
        try append(journal, 8, [data(0, bytes(9000, 4))], accept: false)
        XCTAssertEqual(try epochs(journal), [4, 6, 7, 8])
        try append(journal, 8, [data(0, bytes(10, 5))], accept: false)
        XCTAssertEqual(try epochs(journal), [4, 6, 7, 8])
        XCTAssertTrue(journal.hasLeftover)
        try journal.eraseLeftover()
        XCTAssertEqual(try epochs(journal), [4, 6, 7])
    }

    func testTheFileGrowsInStepsAndShrinksAfterALargeEpoch() throws {
        let journal = try open(limit: 64 << 10)
        try append(journal, 1, [data(0, bytes(10, 1))])
        XCTAssertEqual(try content(path).count, 64 << 10, "All at once up to the limit, in steps of 16 MiB")
        try append(journal, 2, [data(0, bytes(200_000, 1))])
        XCTAssertEqual(try epochs(journal), [1, 2])
        journal.restart(generation: 2, session: session)
        XCTAssertEqual(try content(path).count, 64 << 10)
    }

    func testOneAtATime() throws {
        let journal = try open()
        XCTAssertThrowsError(try open()) { XCTAssertEqual($0 as? ReplicaError, .journalInUse(path: path)) }
        journal.unlock()
        XCTAssertNoThrow(try open())
    }
}
