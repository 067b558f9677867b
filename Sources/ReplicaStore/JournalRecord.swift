import Foundation
import Glibc
import Platform

/// One epoch's disk writes in the journal, all numbers little-endian:
///
///      0  u64 checksum     XXH3-64 of everything from byte 8 to the end of the extents, with the journal's secret
///      8  u32 magic        "SVRJ"
///     12  u32 version      1
///     16  16 bytes         session
///     32  u64 generation   counts how often the journal began again from its front
///     40  u64 sequence     of the record in its generation, from 0 on
///     48  u64 epoch
///     56  u32 count        extents
///     60  u32 0
///     64  u64 data bytes   of all extents
///     72  count x { u32 disk, u8 kind, u8 0, u16 0, u64 offset, u64 length, u64 u64 XXH3-128 of the data, 0 without }
///         the data of the extents, one after the other
///         zeros up to a multiple of 4096
///
/// Records begin at multiples of 4096, so no write of one touches a page of another.
struct JournalRecord: Equatable {
    static let magic: UInt32 = 0x4a52_5653
    static let version: UInt32 = 1
    static let headerBytes = 72
    static let extentBytes = 40
    static let alignment = 4096

    struct Entry: Equatable {
        var extent: DiskExtent
        var hash: Hash128
    }

    var session: UUID
    var generation: UInt64
    var sequence: UInt64
    var epoch: UInt64
    var entries: [Entry]

    var dataBytes: Int { entries.reduce(0) { $0 + $1.extent.dataBytes } }
    var tableBytes: Int { Self.headerBytes + entries.count * Self.extentBytes }
    var totalBytes: Int { Self.roundedUp(tableBytes + dataBytes) }

    static func roundedUp(_ bytes: Int) -> Int { (bytes + alignment - 1) / alignment * alignment }

    /// Header and extents.
    func encoded(_ hash: KeyedHash) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: tableBytes)
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            base.storeBytes(of: Self.magic.littleEndian, toByteOffset: 8, as: UInt32.self)
            base.storeBytes(of: Self.version.littleEndian, toByteOffset: 12, as: UInt32.self)
            base.storeBytes(of: session.uuid, toByteOffset: 16, as: uuid_t.self)
            base.storeBytes(of: generation.littleEndian, toByteOffset: 32, as: UInt64.self)
            base.storeBytes(of: sequence.littleEndian, toByteOffset: 40, as: UInt64.self)
            base.storeBytes(of: epoch.littleEndian, toByteOffset: 48, as: UInt64.self)
            base.storeBytes(of: UInt32(entries.count).littleEndian, toByteOffset: 56, as: UInt32.self)
            base.storeBytes(of: UInt64(dataBytes).littleEndian, toByteOffset: 64, as: UInt64.self)
            for (index, entry) in entries.enumerated() {
                let at = base + Self.headerBytes + index * Self.extentBytes
                at.storeBytes(of: UInt32(entry.extent.disk).littleEndian, as: UInt32.self)
                at.storeBytes(of: entry.extent.kind.rawValue, toByteOffset: 4, as: UInt8.self)
                at.storeBytes(of: entry.extent.offset.littleEndian, toByteOffset: 8, as: UInt64.self)
                at.storeBytes(of: UInt64(entry.extent.length).littleEndian, toByteOffset: 16, as: UInt64.self)
                at.storeBytes(of: entry.hash.low.littleEndian, toByteOffset: 24, as: UInt64.self)
                at.storeBytes(of: entry.hash.high.littleEndian, toByteOffset: 32, as: UInt64.self)
            }
            base.storeBytes(of: hash.hash64(base + 8, buffer.count - 8).littleEndian, as: UInt64.self)
        }
        return bytes
    }

    /// Why something is not a record.
    struct Defect: Error, Equatable, CustomStringConvertible {
        let description: String
        init(_ description: String) { self.description = description }
    }

    /// How many bytes header and extents take, from the first `headerBytes` bytes alone; `room` is what there is until the end.
    static func tableBytes(_ base: UnsafeRawPointer, room: Int) throws(Defect) -> Int {
        guard room >= headerBytes else { throw Defect("the file ends within a record's header") }
        let magic = UInt32(littleEndian: base.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
        guard magic == Self.magic else { throw Defect("0x\(String(magic, radix: 16)) stands where a record's magic should") }
        let count = Int(UInt32(littleEndian: base.loadUnaligned(fromByteOffset: 56, as: UInt32.self)))
        let dataBytes = UInt64(littleEndian: base.loadUnaligned(fromByteOffset: 64, as: UInt64.self))
        let table = headerBytes + count * extentBytes
        guard table <= room, dataBytes <= UInt64(room - table) else {
            throw Defect("a record of \(count) extents and \(dataBytes) bytes does not fit into the \(room) bytes that are left")
        }
        return table
    }

    /// Reads and checks header and extents, `count` bytes as `tableBytes` told.
    static func decode(_ base: UnsafeRawPointer, _ count: Int, _ hash: KeyedHash) throws(Defect) -> JournalRecord {
        func word32(_ offset: Int) -> UInt32 { UInt32(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) }
        func word64(_ offset: Int) -> UInt64 { UInt64(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self)) }
        guard hash.hash64(base + 8, count - 8) == word64(0) else { throw Defect("the checksum of a record's header is wrong") }
        guard word32(12) == version else { throw Defect("a record has the unknown version \(word32(12))") }
        let session = UUID(uuid: base.loadUnaligned(fromByteOffset: 16, as: uuid_t.self))
        var record = JournalRecord(session: session, generation: word64(32), sequence: word64(40), epoch: word64(48), entries: [])
        let extents = (count - headerBytes) / extentBytes
        record.entries.reserveCapacity(extents)
        for index in 0..<extents {
            let at = headerBytes + index * extentBytes
            let rawKind = base.loadUnaligned(fromByteOffset: at + 4, as: UInt8.self)
            guard let kind = DiskExtent.Kind(rawValue: rawKind) else { throw Defect("extent \(index) is of the unknown kind \(rawKind)") }
            guard let length = Int(exactly: word64(at + 16)) else { throw Defect("extent \(index) has \(word64(at + 16)) bytes") }
            let extent = DiskExtent(disk: Int(word32(at)), kind: kind, offset: word64(at + 8), length: length)
            guard extent.dataBytes <= DiskExtent.mostDataBytes else { throw Defect("extent \(index) has \(length) bytes of data") }
            record.entries.append(Entry(extent: extent, hash: Hash128(low: word64(at + 24), high: word64(at + 32))))
        }
        guard UInt64(record.dataBytes) == word64(64) else {
            throw Defect("a record's extents have \(record.dataBytes) bytes, its header says \(word64(64))")
        }
        return record
    }
}
