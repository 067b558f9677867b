import Foundation
import XCTest
@testable import ReplicaStore

final class JournalRecordTests: XCTestCase {
    private let hash = KeyedHash(secret: (0..<192).map { UInt8($0) })!
    private let session = UUID(uuidString: "00112233-4455-6677-8899-AABBCCDDEEFF")!

    private func record() -> JournalRecord {
        let entries = [
            JournalRecord.Entry(extent: DiskExtent(disk: 1, kind: .data, offset: 0x1200, length: 3), hash: Hash128(low: 0x0102, high: 0x0304)),
            JournalRecord.Entry(extent: DiskExtent(disk: 0, kind: .trim, offset: 0, length: 0x10_0000_0000), hash: Hash128(low: 0, high: 0)),
        ]
        return JournalRecord(session: session, generation: 5, sequence: 2, epoch: 0x1234, entries: entries)
    }

    private func decode(_ bytes: [UInt8], room: Int? = nil) throws -> JournalRecord {
        try bytes.withUnsafeBytes { buffer in
            let base = try XCTUnwrap(buffer.baseAddress)
            let count = try JournalRecord.tableBytes(base, room: room ?? buffer.count + 3)
            guard count <= buffer.count else { throw JournalRecord.Defect("short") }
            return try JournalRecord.decode(base, count, hash)
        }
    }

    func testARecordsBytes() throws {
        let bytes = record().encoded(hash)
        XCTAssertEqual(Array(bytes[8...]), hex("""
            53 56 52 4a                                          // magic: SVRJ
            01 00 00 00                                          // version
            00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff      // session
            05 00 00 00 00 00 00 00                              // generation
            02 00 00 00 00 00 00 00                              // sequence
            34 12 00 00 00 00 00 00                              // epoch
            02 00 00 00                                          // extents
            00 00 00 00
            03 00 00 00 00 00 00 00                              // data bytes
            01 00 00 00                                          // extent 0: disk
            01 00 00 00                                          // data
            00 12 00 00 00 00 00 00                              // offset
            03 00 00 00 00 00 00 00                              // length
            02 01 00 00 00 00 00 00 04 03 00 00 00 00 00 00      // hash
            00 00 00 00                                          // extent 1: disk
            03 00 00 00                                          // trim
            00 00 00 00 00 00 00 00                              // offset
            00 00 00 00 10 00 00 00                              // length
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            """))
        let checksum = bytes.withUnsafeBytes { hash.hash64($0.baseAddress! + 8, bytes.count - 8) }
        XCTAssertEqual(Array(bytes[..<8]), withUnsafeBytes(of: checksum.littleEndian) { Array($0) })
        XCTAssertEqual(try decode(bytes), record())
        XCTAssertEqual(try decode(bytes).encoded(hash), bytes)
        XCTAssertEqual(record().totalBytes, 4096)
    }

    func testEveryChangedByteIsNoticed() throws {
        let bytes = record().encoded(hash)
        for index in bytes.indices {
            var changed = bytes
            changed[index] ^= 0x41
            XCTAssertThrowsError(try decode(changed), "byte \(index)") { XCTAssertTrue($0 is JournalRecord.Defect) }
        }
    }

    func testLengthsAreCheckedBeforeAnythingIsTaken() {
        var bytes = record().encoded(hash)
        for index in 56..<60 { bytes[index] = 0xff }
        XCTAssertThrowsError(try decode(bytes)) { error in
            XCTAssertEqual("\(error)", "a record of 4294967295 extents and 3 bytes does not fit into the 155 bytes that are left")
        }
        bytes = record().encoded(hash)
        for index in 64..<72 { bytes[index] = 0xff }
        XCTAssertThrowsError(try decode(bytes)) { XCTAssertTrue("\($0)".contains("18446744073709551615 bytes does not fit"), "\($0)") }
    }

    /// Wrong though the checksum is right: another version of ours wrote it.
    func testUnknownVersionKindAndSums() {
        func resealed(_ change: (inout [UInt8]) -> Void) -> [UInt8] {
            var bytes = record().encoded(hash)
            change(&bytes)
            let checksum = bytes.withUnsafeBytes { hash.hash64($0.baseAddress! + 8, bytes.count - 8) }
            withUnsafeBytes(of: checksum.littleEndian) { bytes.replaceSubrange(0..<8, with: $0) }
            return bytes
        }
        XCTAssertThrowsError(try decode(resealed { $0[12] = 2 })) { XCTAssertEqual("\($0)", "a record has the unknown version 2") }
        XCTAssertThrowsError(try decode(resealed { $0[76] = 9 })) { XCTAssertEqual("\($0)", "extent 0 is of the unknown kind 9") }
        XCTAssertThrowsError(try decode(resealed { $0[88] = 2 })) {
            XCTAssertEqual("\($0)", "a record's extents have 2 bytes, its header says 3")
        }
        XCTAssertThrowsError(try decode(resealed { $0[92] = 1 })) { XCTAssertTrue("\($0)".hasSuffix("bytes of data"), "\($0)") }
        XCTAssertThrowsError(try decode(resealed { $0[135] = 0x80 })) { XCTAssertTrue("\($0)".hasPrefix("extent 1 has 92233"), "\($0)") }
    }
}
