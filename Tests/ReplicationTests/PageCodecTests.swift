import Foundation
import XCTest
@testable import Replication

final class PageCodecTests: XCTestCase {
    private let slot = UnsafeMutableRawPointer.allocate(byteCount: PageCodec.slotBytes, alignment: 16)
    private let page = UnsafeMutableRawPointer.allocate(byteCount: PageLocation.pageBytes, alignment: 16)

    override func tearDown() {
        slot.deallocate()
        page.deallocate()
    }

    private func restored(_ count: Int) -> [UInt8]? {
        PageCodec.restore(slot, available: count, to: page) == count ? Array(UnsafeRawBufferPointer(start: page, count: PageLocation.pageBytes)) : nil
    }

    func testThereAndBack() throws {
        for kind in 0..<4 {
            let bytes = (0..<PageLocation.pageBytes).map { index in
                switch kind {
                case 0: UInt8(index < 8 ? index : 0)
                case 1: UInt8(truncatingIfNeeded: index / 16)
                case 2: index % 512 < 256 ? UInt8.random(in: 0...255) : 7
                default: UInt8(truncatingIfNeeded: index)
                }
            }
            let count = try XCTUnwrap(PageCodec.compress(bytes, into: slot), "kind \(kind)")
            XCTAssertLessThanOrEqual(count, PageCodec.slotBytes)
            XCTAssertEqual(restored(count), bytes)
        }
    }

    func testNoiseIsLeftAsItIs() {
        let noise = (0..<PageLocation.pageBytes).map { _ in UInt8.random(in: 0...255) }
        XCTAssertNil(PageCodec.compress(noise, into: slot))
    }

    /// What a peer sends may be anything: it is refused, or restored to something whose hash is wrong.
    func testBlocksThatAreNone() throws {
        XCTAssertNil(PageCodec.restore(slot, available: 0, to: page))
        XCTAssertNil(PageCodec.restore(slot, available: 1, to: page))
        let count = try XCTUnwrap(PageCodec.compress([UInt8](repeating: 5, count: PageLocation.pageBytes - 1) + [6], into: slot))
        for available in 0..<count { XCTAssertNil(PageCodec.restore(slot, available: available, to: page), "\(available) of \(count)") }
        for length in [0, 1, 0xffff, 3073] {
            slot.storeBytes(of: UInt16(length), as: UInt16.self)
            XCTAssertNil(PageCodec.restore(slot, available: PageCodec.slotBytes, to: page), "\(length)")
        }
        for _ in 0..<20_000 {
            for index in 0..<64 { slot.storeBytes(of: UInt8.random(in: 0...255), toByteOffset: index, as: UInt8.self) }
            slot.storeBytes(of: UInt16.random(in: 0...3072), as: UInt16.self)
            _ = PageCodec.restore(slot, available: PageCodec.slotBytes, to: page)
        }
    }
}
