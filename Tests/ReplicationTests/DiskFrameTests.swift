import Foundation
import MigrationStream
import Platform
import ReplicaStore
import XCTest
@testable import Replication

final class DiskFrameTests: XCTestCase {
    private let hash = PageHash(secret: (0..<192).map { UInt8($0) })

    /// An epoch with nothing but disk writes, and what it is on the wire.
    private func wire(_ records: [DiskRecord], number: UInt64 = 7) throws -> [UInt8] {
        let epoch = CapturedEpoch(number: number, pool: ChunkPool(limitBytes: 1 << 20))
        epoch.disks.records = records
        let pair = try LinkPair(hash)
        let reader = Running { (try? Self.all(pair.b)) ?? [] }
        _ = try pair.a.send(epoch)
        pair.a.shutDown()
        return try XCTUnwrap(reader.result())
    }

    private static func all(_ link: Link) throws -> [UInt8] {
        var bytes: [UInt8] = []
        while let one = try? readFully(link.raw, count: 1, deadline: .now.adding(milliseconds: 5000), during: "a test") {
            bytes += one
            var more = [UInt8](repeating: 0, count: 1 << 16)
            let count = recv(link.raw, &more, more.count, Int32(MSG_DONTWAIT))
            if count > 0 { bytes += more[..<count] }
        }
        return bytes
    }

    func testWritesOnTheWire() throws {
        let bytes = noise512
        try bytes.withUnsafeBytes { buffer in
            let wire = try wire([
                DiskRecord(extent: DiskExtent(disk: 1, kind: .data, offset: 0x1_0000_0200, length: 512), bytes: buffer.baseAddress),
                DiskRecord(extent: DiskExtent(disk: 0, kind: .zero, offset: 0x3000, length: 0x1_4000_0000)),
                DiskRecord(extent: DiskExtent(disk: 255, kind: .trim, offset: 0, length: 1)),
            ])
            XCTAssertEqual(wire.count, 40 + 6 * 24 + 512)
            XCTAssertEqual(Array(wire[8..<64]), hex("""
                53 56 46 31 06 00 00 00     // magic, type: disk
                00 00 00 00 00 00 00 00     // sequence
                07 00 00 00 00 00 00 00     // epoch
                06 00 00 00 90 02 00 00     // 6 entries, 144 + 512 bytes
                00 02 00 00 01 00 00 00     // offset
                00 02 00 00 00 00 00 00     // length
                01 01 00 00 00 00 00 00     // disk 1, data
                """))
            XCTAssertEqual(Array(wire[64..<72]), hex("00 02 00 00 00 00 00 00     // bytes that follow"))
            let (low, high) = hash.withHasher { $0.hash128(buffer.baseAddress!, 512) }
            XCTAssertEqual(Array(wire[72..<88]), withUnsafeBytes(of: low.littleEndian) { Array($0) } + withUnsafeBytes(of: high.littleEndian) { Array($0) })
            XCTAssertEqual(Array(wire[88..<136]), hex("""
                00 30 00 00 00 00 00 00     // offset
                00 00 00 40 01 00 00 00     // length: 5 GiB
                00 02 00 00 00 00 00 00     // disk 0, zeroes
                00 00 00 00 00 00 00 00     // no bytes follow
                00 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00
                """))
            XCTAssertEqual(Array(wire[136..<160]), hex("""
                00 00 00 00 00 00 00 00
                01 00 00 00 00 00 00 00
                ff 03 00 00 00 00 00 00     // disk 255, trim
                """))
            XCTAssertEqual(Array(wire[184...]), bytes)
        }
    }

    private var noise512: [UInt8] {
        var random = SeededGenerator(seed: 80)
        return noise(512, &random)
    }

    /// As many frames as it takes, none of them too large, order kept.
    func testManyWrites() throws {
        let bytes = [UInt8](repeating: 5, count: 1 << 20)
        try bytes.withUnsafeBytes { buffer in
            var records: [DiskRecord] = []
            for index in 0..<300 {
                let length = [1, 4096, 100_000, 1 << 20][index % 40 == 0 ? 3 : index % 3]
                let kind: DiskExtent.Kind = index % 7 == 0 ? .zero : .data
                records.append(DiskRecord(extent: DiskExtent(disk: 0, kind: kind, offset: UInt64(index), length: length),
                                          bytes: kind == .data ? buffer.baseAddress : nil))
            }
            let wire = try wire(records)
            let extents = try self.extents(wire)
            XCTAssertEqual(extents, records.map(\.extent))
        }
    }

    private func extents(_ wire: [UInt8]) throws -> [DiskExtent] {
        var extents: [DiskExtent] = []
        try wire.withUnsafeBytes { buffer in
            var at = 0
            var sequence: UInt64 = 0
            while at < buffer.count {
                let base = buffer.baseAddress! + at
                let header = try FrameHeader.read(base, expectedSequence: sequence)
                let verified: Result<Void, FrameError> = hash.withHasher { hasher in
                    Result { () throws(FrameError) in try header.verifyEntries(base, hasher) }
                }
                try verified.get()
                XCTAssertEqual(header.type, .disk)
                for index in stride(from: 0, to: Int(header.count), by: 2) {
                    extents.append(try DiskEntry.read(base, index: index, frame: sequence).entry.extent)
                }
                at += PageFrame.headerBytes + Int(header.length)
                sequence += 1
            }
        }
        return extents
    }

    /// Kinds and lengths that cannot be, by name.
    func testEntriesThatCannotBe() throws {
        func read(_ offset: UInt64, _ length: UInt64, _ kind: UInt64, _ follows: UInt64) throws {
            let buffer = FrameBuffer()
            FrameEntry(location: offset, hashLow: length, hashHigh: kind).write(to: buffer.base, index: 0)
            FrameEntry(location: follows, hashLow: 1, hashHigh: 1).write(to: buffer.base, index: 1)
            _ = try DiskEntry.read(buffer.base, index: 0, frame: 12)
        }
        XCTAssertNoThrow(try read(.max, 512, 0x105, 512))
        XCTAssertNoThrow(try read(0, 1 << 40, 0x200, 0))
        let bad: [(UInt64, UInt64, UInt64)] = [
            (512, 0x000, 512), (512, 0x400, 0), (512, 0x1_0100, 512), (512, .max, 512), (0, 0x100, 0), (0, 0x200, 0), (1 << 63, 0x200, 0),
            (512, 0x100, 0), (512, 0x100, 511), (512, 0x200, 512), (512, 0x300, 1), (1 << 20 + 1, 0x100, 1 << 20 + 1),
        ]
        for (length, kind, follows) in bad {
            XCTAssertThrowsError(try read(0, length, kind, follows), "\(length) \(kind) \(follows)") { error in
                let text = "Frame 12 has a disk write of kind \(kind >> 8) with \(length) and \(follows) bytes"
                XCTAssertEqual(error as? FrameError, .badContent(text))
            }
        }
    }

    private func hex(_ text: String) -> [UInt8] {
        let digits = text.split(whereSeparator: \.isNewline).map { $0.prefix { $0 != "/" } }.joined().filter(\.isHexDigit)
        return stride(from: 0, to: digits.count, by: 2).map { at in
            let start = digits.index(digits.startIndex, offsetBy: at)
            return UInt8(digits[start..<digits.index(start, offsetBy: 2)], radix: 16) ?? 0
        }
    }
}
