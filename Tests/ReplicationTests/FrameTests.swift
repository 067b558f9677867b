import Foundation
import MigrationStream
import Platform
import XCTest
@testable import Replication

/// Two connected stream sockets with a link on each.
final class LinkPair: Sendable {
    let a: Link
    let b: Link
    init(_ hash: PageHash = Link.openingHash, stallMilliseconds: Double = 1000) throws {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw SystemError("socketpair") }
        a = Link(Descriptor(owning: ends[0]), hash: hash, stallMilliseconds: stallMilliseconds)
        b = Link(Descriptor(owning: ends[1]), hash: hash, stallMilliseconds: stallMilliseconds)
    }
}

final class FrameTests: XCTestCase {
    private let hash = PageHash(secret: (0..<192).map { UInt8($0) })

    /// What `send` writes, byte for byte.
    private func wire(_ body: (Link) throws -> Void) throws -> [UInt8] {
        let pair = try LinkPair(hash)
        try body(pair.a)
        return try readFully(pair.b.raw, count: Int(pair.a.bytesSent), deadline: .now.adding(milliseconds: 1000), during: "a test")
    }

    private func receive(_ bytes: [UInt8], frames: Int = 1) throws -> FrameHeader {
        let pair = try LinkPair(hash)
        try writeFully(pair.a.raw, bytes, deadline: .now.adding(milliseconds: 1000), during: "a test")
        pair.a.shutDown()
        let buffer = FrameBuffer()
        var header: FrameHeader?
        for _ in 0..<frames {
            let frame = try pair.b.receive(to: buffer.base, deadline: .now.adding(milliseconds: 1000))
            if frame.type == .device { _ = try pair.b.blob(frame, buffer.base) }
            header = frame
        }
        return try XCTUnwrap(header)
    }

    private func hex(_ text: String) -> [UInt8] {
        let digits = text.split(whereSeparator: \.isNewline).map { $0.prefix { $0 != "/" } }.joined().filter(\.isHexDigit)
        return stride(from: 0, to: digits.count, by: 2).map { at in
            let start = digits.index(digits.startIndex, offsetBy: at)
            return UInt8(digits[start..<digits.index(start, offsetBy: 2)], radix: 16) ?? 0
        }
    }

    func testACommitOnTheWire() throws {
        let bytes = try wire { try $0.send(.commit, epoch: 0x1234, numbers: FrameEntry(location: 3, hashLow: 0x0102_0304, hashHigh: 0)) }
        XCTAssertEqual(Array(bytes[8...]), hex("""
            53 56 46 31                 // magic: SVF1
            04                          // type: commit
            00 00 00                    // reserved
            00 00 00 00 00 00 00 00     // sequence
            34 12 00 00 00 00 00 00     // epoch
            01 00 00 00                 // entries
            18 00 00 00                 // bytes after the header
            03 00 00 00 00 00 00 00     // entry: pages
            04 03 02 01 00 00 00 00     // bytes of device state
            00 00 00 00 00 00 00 00
            """))
        let checksum = hash.withHasher { hasher in bytes.withUnsafeBytes { hasher.hash64($0.baseAddress! + 8, bytes.count - 8) } }
        XCTAssertEqual(Array(bytes[..<8]), withUnsafeBytes(of: checksum.littleEndian) { Array($0) })
        let header = try receive(bytes)
        XCTAssertEqual(header, FrameHeader(type: .commit, sequence: 0, epoch: 0x1234, count: 1, length: 24))
    }

    /// An epoch of one page, one fill, one page that the shadow has, and device state.
    private func epoch(_ pool: ChunkPool) -> CapturedEpoch {
        let epoch = CapturedEpoch(number: 7, pool: pool, capacity: 1)
        let page = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
        addTeardownBlock { page.deallocate() }
        for index in 0..<4096 { page.storeBytes(of: UInt8(truncatingIfNeeded: index * 7), toByteOffset: index, as: UInt8.self) }
        epoch.append(PageLocation(block: 1, offset: 0x5000), bytes: page)
        var fill = PageLocation(block: 0, offset: 0x3000)
        fill.word |= PageLocation.fillBit
        epoch.append(fill, bytes: nil, fill: 0xaa)
        epoch.append(PageLocation(block: 1, offset: 0x6000), bytes: page)
        epoch.setDevice(UnsafeRawBufferPointer(start: page, count: 100))
        return epoch
    }

    func testAnEpochOnTheWire() throws {
        let pool = ChunkPool(limitBytes: 1 << 20)
        let epoch = epoch(pool)
        let table = try PageTable([RAMBlock(name: "a", length: 1 << 20, index: 0), RAMBlock(name: "b", length: 1 << 20, index: 1)])
        epoch.filledRecords[2].location.word |= PageLocation.droppedBit
        _ = table.filter(UnsafeMutableBufferPointer(rebasing: epoch.filledRecords[..<2]), hash)
        let bytes = try wire { try $0.sendCommit(epoch, pages: $0.send(epoch), base: 6) }
        let pages = 40 + 2 * 24 + 4096
        XCTAssertEqual(bytes.count, pages + 40 + 24 + 100 + 40 + 2 * 24)
        XCTAssertEqual(Array(bytes[8..<48]), hex("""
            53 56 46 31 02 00 00 00     // magic, type: pages
            00 00 00 00 00 00 00 00     // sequence
            07 00 00 00 00 00 00 00     // epoch
            02 00 00 00 30 10 00 00     // 2 entries, 48 + 4096 bytes
            05 00 00 00 00 01 00 00     // page 5 of block 1
            """))
        XCTAssertEqual(Array(bytes[64..<88]), hex("""
            03 00 00 00 00 00 00 80     // page 3 of block 0, fill
            aa 00 00 00 00 00 00 00     // the byte
            00 00 00 00 00 00 00 00
            """))
        XCTAssertEqual(Array(bytes[88..<92]), [0, 7, 14, 21], "the page")
        XCTAssertEqual(bytes[pages + 12], 3, "device")
        XCTAssertEqual(bytes[pages + 164 + 12], 4, "commit")
        XCTAssertEqual(Array(bytes[(pages + 164 + 40 + 24)...].prefix(8)), [6, 0, 0, 0, 0, 0, 0, 0], "on top of epoch 6")
        XCTAssertEqual(try receive(bytes, frames: 3).sequence, 2)
    }

    /// No byte of a frame can change unnoticed. (Pages are checked by the shadow worker, see ReplicationTests.)
    func testEveryByteFlipped() throws {
        let device = [UInt8](0..<100)
        let bytes = try wire { link in try device.withUnsafeBytes { try link.send(.device, epoch: 9, blob: $0) } }
        XCTAssertEqual(try receive(bytes).epoch, 9)
        for offset in bytes.indices {
            for bit in [UInt8(1), 0x80] {
                var damaged = bytes
                damaged[offset] ^= bit
                XCTAssertThrowsError(try receive(damaged), "byte \(offset) bit \(bit)") { error in
                    XCTAssertTrue(error is FrameError || error is ChannelError, "\(error)")
                }
            }
        }
    }

    func testCutAtEveryByte() throws {
        let bytes = try wire { try $0.send(.heartbeat, data: Data([1, 2, 3])) }
        for count in bytes.indices {
            XCTAssertThrowsError(try receive(Array(bytes.prefix(count)))) { error in
                guard case .closed? = error as? ChannelError else { return XCTFail("\(count): \(error)") }
            }
        }
    }

    func testSequence() throws {
        let two = try wire { link in
            try link.send(.heartbeat, data: Data())
            try link.send(.heartbeat, data: Data([1]))
        }
        XCTAssertEqual(try receive(two, frames: 2).sequence, 1)
        let size = two.count - 65
        for (bytes, expected) in [(Array(two[size...]), FrameError.outOfSequence(got: 1, expected: 0)),
                                  (Array(two[..<size]) + Array(two[..<size]), .outOfSequence(got: 0, expected: 1))] {
            XCTAssertThrowsError(try receive(bytes, frames: 2)) { XCTAssertEqual($0 as? FrameError, expected) }
        }
    }

    /// Headers that announce what cannot be are refused before anything is read for them.
    func testCeilings() throws {
        func header(_ count: UInt32, _ length: UInt32, type: UInt32 = 2) throws {
            var bytes = [UInt8](repeating: 0, count: 40)
            bytes.withUnsafeMutableBytes { raw in
                raw.storeBytes(of: PageFrame.magic, toByteOffset: 8, as: UInt32.self)
                raw.storeBytes(of: type, toByteOffset: 12, as: UInt32.self)
                raw.storeBytes(of: count, toByteOffset: 32, as: UInt32.self)
                raw.storeBytes(of: length, toByteOffset: 36, as: UInt32.self)
            }
            _ = try bytes.withUnsafeBytes { try FrameHeader.read($0.baseAddress!, expectedSequence: 0) }
        }
        XCTAssertNoThrow(try header(256, 256 * (24 + 4096)))
        for (count, length) in [(257, 257 * 24), (256, 256 * (24 + 4096) + 1), (2, 47), (.max, 0), (0, .max)] as [(UInt32, UInt32)] {
            XCTAssertThrowsError(try header(count, length)) {
                XCTAssertEqual($0 as? FrameError, .badLength(count: Int(count), length: Int(length), frame: 0))
            }
        }
        for type in [0, 8, 15, 23, 0x102, 0x8000_0002] as [UInt32] {
            XCTAssertThrowsError(try header(1, 24, type: type)) { XCTAssertEqual($0 as? FrameError, .unknownType(type, frame: 0)) }
        }
    }

    /// The session's frames need the session's secret; the opening ones don't.
    func testAnotherSecretIsDamage() throws {
        let bytes = try wire { try $0.send(.commit, epoch: 1, numbers: FrameEntry(location: 0, hashLow: 1, hashHigh: 0)) }
        let pair = try LinkPair(PageHash())
        try writeFully(pair.a.raw, bytes, deadline: .now.adding(milliseconds: 1000), during: "a test")
        let buffer = FrameBuffer()
        XCTAssertThrowsError(try pair.b.receive(to: buffer.base, deadline: .now.adding(milliseconds: 1000))) {
            XCTAssertEqual($0 as? FrameError, .damaged("header or entries", frame: 0))
        }
        withExtendedLifetime(buffer) {}
    }

    func testMoreThanOneFrameOfPages() throws {
        let pool = ChunkPool(limitBytes: 1 << 20)
        let page = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
        defer { page.deallocate() }
        memset(page, 3, 4096)
        for count in [0, 255, 256, 257, 600] {
            let epoch = CapturedEpoch(number: 1, pool: pool)
            for index in 0..<count { epoch.append(PageLocation(block: 0, offset: UInt64(index) << 12), bytes: page) }
            epoch.setDevice(UnsafeRawBufferPointer(start: page, count: 1))
            let pair = try LinkPair(hash, stallMilliseconds: 5000)
            let thread = Thread { try? pair.a.sendCommit(epoch, pages: pair.a.send(epoch), base: 0) }
            thread.start()
            let buffer = FrameBuffer()
            var pages = 0
            var frames = 0
            while true {
                let frame = try pair.b.receive(to: buffer.base, deadline: .now.adding(milliseconds: 5000))
                if frame.type == .commit { break }
                frames += 1
                if frame.type == .pages { pages += Int(frame.count) }
            }
            XCTAssertEqual(pages, count)
            XCTAssertEqual(frames, (count + 255) / 256 + 1)
            withExtendedLifetime(buffer) { XCTAssertEqual(FrameEntry.read(buffer.base, index: 0).location, UInt64(count)) }
        }
    }

    func testPageLocations() {
        let location = PageLocation(block: 0xffff, offset: 0xff_ffff_ffff << 12)
        XCTAssertEqual(location.block, 0xffff)
        XCTAssertEqual(location.page, PageLocation.highestPage)
        XCTAssertFalse(location.isFill || location.isDropped || location.hasUnknownBits)
        XCTAssertTrue(PageLocation(word: 1 << 56).hasUnknownBits)
        XCTAssertTrue(PageLocation(word: PageLocation.droppedBit).hasUnknownBits)
        XCTAssertFalse(PageLocation(word: PageLocation.fillBit).hasUnknownBits)
        XCTAssertEqual(MemoryLayout<PageRecord>.stride, 32)
    }
}
