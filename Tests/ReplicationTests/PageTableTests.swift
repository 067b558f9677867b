import Foundation
import MigrationStream
import Platform
import XCTest
@testable import Replication

final class PageTableTests: XCTestCase {
    private let hash = PageHash(secret: [UInt8](repeating: 0x5a, count: 192))
    private let pages = UnsafeMutableRawPointer.allocate(byteCount: 4 * 4096, alignment: 4096)

    override func setUp() {
        // Page 0 is zero, page n is full of n.
        for index in 0..<4 { memset(pages + index * 4096, Int32(index), 4096) }
    }

    override func tearDown() { memset(pages, 0, 4096) }

    deinit { pages.deallocate() }

    private func table() throws -> PageTable {
        try PageTable([RAMBlock(name: "pc.ram", length: 16 << 20, index: 0), RAMBlock(name: "rom", length: 8192, index: 1)])
    }

    private enum Content {
        case page(Int)
        case fill(UInt8)
    }

    /// Filters one epoch of (block, page, content); says for each what becomes of it.
    private func filter(_ table: PageTable, _ content: [(Int, Int, Content)]) -> (what: [String], bytes: Int) {
        let epoch = CapturedEpoch(number: 1, pool: ChunkPool(limitBytes: 1 << 20), capacity: 1)
        for (block, page, content) in content {
            var location = PageLocation(block: block, offset: UInt64(page) << 12)
            switch content {
            case .page(let index): epoch.append(location, bytes: UnsafeRawPointer(pages + index * 4096))
            case .fill(let byte):
                location.word |= PageLocation.fillBit
                epoch.append(location, bytes: nil, fill: byte)
            }
        }
        let bytes = table.filter(epoch.filledRecords, hash)
        return (epoch.filledRecords.map { record in
            if record.location.isDropped { return "drop" }
            return record.location.isFill ? "fill \(record.hashLow)" : "page"
        }, bytes)
    }

    func testZeroPagesCostNothingOnAFreshShadow() throws {
        let result = filter(try table(), [(0, 0, .page(0)), (0, 4095, .fill(0)), (1, 1, .page(0))])
        XCTAssertEqual(result.what, ["drop", "drop", "drop"])
        XCTAssertEqual(result.bytes, 0)
    }

    func testUnchangedPagesAreDropped() throws {
        let table = try table()
        XCTAssertEqual(filter(table, [(0, 1, .page(1)), (1, 1, .page(1))]).what, ["page", "page"])
        XCTAssertEqual(filter(table, [(0, 1, .page(1)), (1, 1, .page(1)), (0, 2, .page(1))]).what, ["drop", "drop", "page"])
    }

    func testChangedBackAndForth() throws {
        let table = try table()
        XCTAssertEqual(filter(table, [(0, 1, .page(1))]).what, ["page"])
        XCTAssertEqual(filter(table, [(0, 1, .page(2))]).what, ["page"])
        XCTAssertEqual(filter(table, [(0, 1, .page(1))]).what, ["page"], "What the shadow held before does not count")
        XCTAssertEqual(filter(table, [(0, 1, .page(0))]).what, ["fill 0"], "A page of zeros crosses as 24 bytes")
        XCTAssertEqual(filter(table, [(0, 1, .fill(0))]).what, ["drop"])
        XCTAssertEqual(filter(table, [(0, 1, .page(1))]).what, ["page"])
        // Within one epoch, too.
        XCTAssertEqual(filter(table, [(0, 1, .page(1)), (0, 1, .page(3)), (0, 1, .page(1))]).what, ["drop", "page", "page"])
    }

    func testFills() throws {
        let table = try table()
        let result = filter(table, [(0, 1, .fill(7)), (0, 1, .fill(7)), (0, 1, .fill(8)), (0, 1, .fill(0)), (0, 1, .fill(0xff))])
        XCTAssertEqual(result.what, ["fill 7", "drop", "fill 8", "fill 0", "fill 255"])
        XCTAssertEqual(result.bytes, 4 * PageFrame.entryBytes)
        // The same content as a page: sent once more, never mistaken.
        XCTAssertEqual(filter(table, [(0, 2, .fill(1)), (0, 2, .page(1)), (0, 2, .page(1))]).what, ["fill 1", "page", "drop"])
    }

    func testBytes() throws {
        XCTAssertEqual(filter(try table(), [(0, 1, .page(1)), (0, 2, .page(2))]).bytes, 2 * (24 + 4096))
    }

    func testSecretsMatter() {
        let other = PageHash()
        let a = hash.withHasher { $0.hash128(pages + 4096, 4096) }
        let b = other.withHasher { $0.hash128(pages + 4096, 4096) }
        XCTAssertFalse(a == b)
        XCTAssertTrue(hash.withHasher { h in let z = h.hash128(pages, 4096); return h.isZeroPage(z.low, z.high) })
        XCTAssertFalse(hash.withHasher { h in h.isZeroPage(a.low, a.high) })
    }

    private func residentBytes() -> Int {
        let fields = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ") ?? []
        return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
    }

    /// 16 bytes for a page that the guest uses, nothing for one it does not. Of a large guest: the count is the whole process's, and
    /// threads of earlier tests give some of theirs back meanwhile.
    func testResidentMemory() throws {
        let guestPages = 4 << 20        // 16 GiB
        let before = residentBytes()
        let table = try PageTable([RAMBlock(name: "pc.ram", length: UInt64(guestPages) << 12, index: 0)])
        XCTAssertLessThan(residentBytes() - before, 1 << 20, "An untouched table costs nothing")
        // 256 entries share a page of the table.
        for page in stride(from: 0, to: guestPages, by: 256) {
            XCTAssertTrue(table.update(PageLocation(block: 0, offset: UInt64(page) << 12), low: 1, high: 2))
        }
        let perPage = Double(residentBytes() - before) / Double(guestPages)
        XCTAssertGreaterThan(perPage, 12)
        XCTAssertLessThan(perPage, 20)
        withExtendedLifetime(table) {}
    }

    /// A shadow that kept its memory tells of it; one that tells of pages that are not there is not believed.
    func testWhatTheShadowTells() throws {
        let table = try table()
        let hashes = (0..<4).flatMap { index -> [UInt64] in
            guard index > 0 else { return [0, 0] }
            let (low, high) = hash.withHasher { $0.hash128(pages + index * 4096, 4096) }
            return [low, high]
        }
        func learn(_ location: PageLocation, _ count: Int) -> Bool { hashes.withUnsafeBytes { table.learn(UnsafeRawBufferPointer(rebasing: $0[..<(count * 16)]), first: location) } }
        XCTAssertTrue(learn(PageLocation(block: 0, offset: 100 << 12), 4))
        let told = filter(table, [(0, 100, .page(0)), (0, 101, .page(1)), (0, 102, .page(3)), (0, 103, .page(3)), (0, 104, .fill(0))])
        XCTAssertEqual(told.what, ["drop", "drop", "page", "drop", "drop"])
        XCTAssertTrue(learn(PageLocation(block: 1, offset: 0), 2))
        XCTAssertFalse(learn(PageLocation(block: 1, offset: 4096), 2), "Only one is there")
        XCTAssertFalse(learn(PageLocation(block: 1, offset: 1 << 40), 1))
        XCTAssertFalse(learn(PageLocation(block: 2, offset: 0), 1))
        XCTAssertFalse(learn(PageLocation(word: PageLocation.droppedBit), 1))
        XCTAssertTrue(learn(PageLocation(block: 1, offset: 8192), 0))
    }
}
