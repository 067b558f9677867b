import CLZ4
import Glibc

/// Pages, or patches of pages, in LZ4's block format, each by itself: u16 length (little-endian; bit 15: a patch as it is, because it did not become smaller),
/// block. For passes, whose pages changed seconds ago and cross the wire while
/// nobody waits; a guest's epoch of 20 ms is shorter than the detour.
enum PageCodec {
    /// A page that does not become smaller than this is sent as it is.
    private static let mostBytes = PageLocation.pageBytes * 3 / 4
    private static let lengthBytes = 2
    /// Room that a page may need.
    static let slotBytes = lengthBytes + max(mostBytes, PagePatch.mostBytes)
    private static let storedBit = 0x8000

    /// Bytes written to `slot`; nil: it is not worth it.
    static func compress(_ page: UnsafeRawPointer, into slot: UnsafeMutableRawPointer) -> Int? {
        let count = LZ4_compress_default(page.assumingMemoryBound(to: CChar.self), (slot + lengthBytes).assumingMemoryBound(to: CChar.self),
                                         Int32(PageLocation.pageBytes), Int32(mostBytes))
        guard count > 0 else { return nil }
        slot.storeBytes(of: UInt16(count).littleEndian, as: UInt16.self)
        return lengthBytes + Int(count)
    }

    /// Restores a page; returns how many of the `available` bytes it took. Nil: that is no page, whatever the destination holds now.
    static func restore(_ bytes: UnsafeRawPointer, available: Int, to page: UnsafeMutableRawPointer) -> Int? {
        guard available >= lengthBytes else { return nil }
        let count = Int(UInt16(littleEndian: bytes.loadUnaligned(as: UInt16.self)))
        guard count <= mostBytes, lengthBytes + count <= available else { return nil }
        let restored = LZ4_decompress_safe((bytes + lengthBytes).assumingMemoryBound(to: CChar.self), page.assumingMemoryBound(to: CChar.self),
                                           Int32(count), Int32(PageLocation.pageBytes))
        return Int(restored) == PageLocation.pageBytes ? lengthBytes + count : nil
    }

    /// Bytes written to `slot` for a patch of `length` bytes.
    static func compress(patch: UnsafeRawPointer, length: Int, into slot: UnsafeMutableRawPointer) -> Int {
        let count = LZ4_compress_default(patch.assumingMemoryBound(to: CChar.self), (slot + lengthBytes).assumingMemoryBound(to: CChar.self),
                                         Int32(length), Int32(length - 1))
        if count <= 0 { memcpy(slot + lengthBytes, patch, length) }
        slot.storeBytes(of: UInt16(count > 0 ? Int(count) : length | storedBit).littleEndian, as: UInt16.self)
        return lengthBytes + (count > 0 ? Int(count) : length)
    }

    /// Restores a patch to `patch`, which has room for `PagePatch.mostBytes`; returns how many of the `available` bytes it took. Nil: that is no patch.
    static func restore(patch bytes: UnsafeRawPointer, available: Int, to patch: UnsafeMutableRawPointer) -> Int? {
        guard available >= lengthBytes else { return nil }
        let word = Int(UInt16(littleEndian: bytes.loadUnaligned(as: UInt16.self)))
        let count = word & ~storedBit
        guard count <= PagePatch.mostBytes, lengthBytes + count <= available else { return nil }
        var restored = count
        if word & storedBit != 0 {
            memcpy(patch, bytes + lengthBytes, count)
        } else {
            restored = Int(LZ4_decompress_safe((bytes + lengthBytes).assumingMemoryBound(to: CChar.self), patch.assumingMemoryBound(to: CChar.self),
                                               Int32(count), Int32(PagePatch.mostBytes)))
        }
        guard restored >= 8, restored == PagePatch.length(of: patch) else { return nil }
        return lengthBytes + count
    }
}
