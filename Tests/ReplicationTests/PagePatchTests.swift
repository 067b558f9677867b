import Foundation
import MigrationStream
import XCTest
@testable import Replication

final class PagePatchTests: XCTestCase {
    private let hash = PageHash()
    private let slot = UnsafeMutableRawPointer.allocate(byteCount: PageCodec.slotBytes, alignment: 16)
    private let patch = UnsafeMutableRawPointer.allocate(byteCount: PagePatch.mostBytes, alignment: 16)

    override func tearDown() {
        slot.deallocate()
        patch.deallocate()
    }

    private func table() throws -> PatchTable { try PatchTable([RAMBlock(name: "pc.ram", length: 64 << 12, index: 0)]) }
    private func place(_ page: UInt64) -> PageLocation { PageLocation(block: 0, offset: page << 12) }
    private func noise() -> [UInt8] { (0..<PageLocation.pageBytes).map { _ in UInt8.random(in: 0...255) } }

    private func update(_ table: PatchTable, _ page: UInt64, _ bytes: [UInt8], epoch: UInt64) -> UInt8? {
        hash.withHasher { table.update(place(page), bytes, epoch: epoch, $0) }
    }

    func testWhatIsNotKnownGoesWhole() throws {
        let table = try table()
        var page = noise()
        XCTAssertNil(update(table, 3, page, epoch: 0), "a page that was never sent")
        page[700] ^= 1
        page[4095] ^= 1
        XCTAssertEqual(update(table, 3, page, epoch: 1), 0b1000_0010)
        XCTAssertEqual(update(table, 3, page, epoch: 2), 0)
        page[0] ^= 1
        XCTAssertNil(update(table, 3, page, epoch: 2), "a second time in one epoch")
        XCTAssertNil(update(table, 3, noise(), epoch: 3), "every part is different")
        page = noise()
        XCTAssertNil(update(table, 3, page, epoch: 4))
        table.forget([place(3)])
        page[9] ^= 1
        XCTAssertNil(update(table, 3, page, epoch: 5), "forgotten")
        XCTAssertNil(update(table, 4, page, epoch: 6), "another page")
    }

    func testThereAndBackWithEverySetOfParts() throws {
        for changed in UInt8.min..<UInt8.max {
            let old = noise()
            var new = old
            for part in 0..<PagePatch.parts where changed & 1 << part != 0 {
                // Some compress, some do not.
                for index in 0..<(part.isMultiple(of: 2) ? 512 : 3) { new[part * 512 + index] = part.isMultiple(of: 2) ? 7 : UInt8.random(in: 0...255) }
            }
            let place = UnsafeMutableRawPointer.allocate(byteCount: PagePatch.mostBytes, alignment: 16)
            defer { place.deallocate() }
            PagePatch.write(changed, of: new, to: place)
            let length = PagePatch.length(changed)
            XCTAssertEqual(PagePatch.length(of: place), length)
            let sent = PageCodec.compress(patch: place, length: length, into: slot)
            XCTAssertLessThanOrEqual(sent, PageCodec.slotBytes)
            for available in Set([0, 1, 2, sent / 2, sent - 1]) where available < sent {
                XCTAssertNil(PageCodec.restore(patch: slot, available: available, to: patch), "\(available) of \(sent)")
            }
            XCTAssertEqual(PageCodec.restore(patch: slot, available: sent, to: patch), sent)
            var made = old
            made.withUnsafeMutableBytes { if let base = $0.baseAddress { PagePatch.apply(patch, to: base) } }
            XCTAssertEqual(made, new)
            // A journal that is applied again.
            made.withUnsafeMutableBytes { if let base = $0.baseAddress { PagePatch.apply(patch, to: base) } }
            XCTAssertEqual(made, new)
        }
    }

    /// What a peer sends may be anything: it is refused, or it is a patch.
    func testPatchesThatAreNone() {
        slot.initializeMemory(as: UInt8.self, repeating: 0, count: PageCodec.slotBytes)
        for (length, header) in [(0, 0), (7, 0), (9, 0), (8, 1), (519, 1), (521, 1), (8, 0xff), (3592, 0x1ff), (0x7fff, 0)] as [(Int, UInt64)] {
            slot.storeBytes(of: UInt16(length | 0x8000), as: UInt16.self)
            slot.storeBytes(of: header, toByteOffset: 2, as: UInt64.self)
            XCTAssertNil(PageCodec.restore(patch: slot, available: PageCodec.slotBytes, to: patch), "\(length) bytes, parts \(header)")
        }
        for _ in 0..<20_000 {
            for index in 0..<64 { slot.storeBytes(of: UInt8.random(in: 0...255), toByteOffset: index, as: UInt8.self) }
            slot.storeBytes(of: UInt16.random(in: 0...3600), as: UInt16.self)
            if PageCodec.restore(patch: slot, available: PageCodec.slotBytes, to: patch) != nil { XCTAssertNotNil(PagePatch.length(of: patch)) }
        }
    }
}
