import Glibc
import MigrationStream
import Platform

/// The changed parts of a page, for pages of which the shadow holds an older state. In memory:
///
///     u64 which parts, bit n: bytes 512 n to 512 n + 511      those parts, one after the other
///
/// A guest that counts, logs or links lists changes a few bytes of a page; the page's own hash still travels with it, so that what the shadow
/// has after the change is checked before it counts.
enum PagePatch {
    /// 512 bytes are a sector, a few objects, a line of a log: with 256 the table would be twice as large, with 1024 a changed
    /// counter would cost twice as much.
    static let partBytes = 512
    static let parts = PageLocation.pageBytes / partBytes
    private static let headerBytes = 8
    /// A patch of all parts is no patch.
    static let mostBytes = headerBytes + (parts - 1) * partBytes

    /// Bytes of a patch of these parts.
    static func length(_ changed: UInt8) -> Int { headerBytes + changed.nonzeroBitCount * partBytes }

    /// Writes the `changed` parts of `page` to `place`, which has room for `length(changed)` bytes.
    static func write(_ changed: UInt8, of page: UnsafeRawPointer, to place: UnsafeMutableRawPointer) {
        place.storeBytes(of: UInt64(changed).littleEndian, as: UInt64.self)
        var at = place + headerBytes
        for part in 0..<parts where changed & 1 << part != 0 {
            memcpy(at, page + part * partBytes, partBytes)
            at += partBytes
        }
    }

    /// The length that the patch says it has; nil: it is none.
    static func length(of patch: UnsafeRawPointer) -> Int? {
        let word = UInt64(littleEndian: patch.loadUnaligned(as: UInt64.self))
        return word < 0xff ? length(UInt8(word)) : nil
    }

    /// Makes the new page out of the old one.
    static func apply(_ patch: UnsafeRawPointer, to page: UnsafeMutableRawPointer) {
        let word = UInt64(littleEndian: patch.loadUnaligned(as: UInt64.self))
        var from = patch + headerBytes
        for part in 0..<parts where word & 1 << part != 0 {
            memcpy(page + part * partBytes, from, partBytes)
            from += partBytes
        }
    }
}

/// What the shadow holds of every page, part by part, beside the `PageTable`: 72 bytes a page, in memory that costs nothing before it is touched.
final class PatchTable {
    /// A hash a part, and the epoch that the page went out for last. A hash of 0: not known.
    private static let wordsPerPage = PagePatch.parts + 1
    private let blocks: [MappedMemory]

    init(_ ram: [RAMBlock]) throws(SystemError) {
        var blocks: [MappedMemory] = []
        for block in ram {
            let pages = Int((block.length + 4095) / 4096)
            blocks.append(try MappedMemory.anonymous(max(1, pages) * Self.wordsPerPage * 8))
        }
        self.blocks = blocks
    }

    private func words(_ location: PageLocation) -> UnsafeMutablePointer<UInt64> {
        (blocks[location.block].base + Int(location.page) * Self.wordsPerPage * 8).assumingMemoryBound(to: UInt64.self)
    }

    /// Stores the parts of a page that is about to go out for `epoch`. Returns those that have to; nil: the whole page, because the older one
    /// is not known, every part is different, or the shadow is to get this page a second time in one epoch: it checks a patch against what it
    /// has committed.
    func update(_ location: PageLocation, _ page: UnsafeRawPointer, epoch: UInt64, _ hasher: PageHash.Hasher) -> UInt8? {
        let words = words(location)
        let isKnown = words[0] != 0 && words[PagePatch.parts] != epoch &+ 1
        var changed: UInt8 = 0
        for part in 0..<PagePatch.parts {
            let hash = max(1, hasher.hash64(page + part * PagePatch.partBytes, PagePatch.partBytes))
            if words[part] != hash { changed |= 1 << part }
            words[part] = hash
        }
        words[PagePatch.parts] = epoch &+ 1
        return isKnown && changed != .max ? changed : nil
    }

    /// Whatever comes next of these pages is sent whole.
    func forget(_ locations: some Sequence<PageLocation>) {
        for location in locations { words(location)[0] = 0 }
    }
}
