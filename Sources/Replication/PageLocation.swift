/// Where a page lies, and what is known about it, in one word:
///
///     63      62       61          60     59..56   55..40   39..0
///     fill    dropped  compressed  patch  0        block    page number within the block
///
/// `fill`: the page is 4096 times one byte, which the hash field carries. `dropped`: the shadow holds this content already. `compressed`: on the
/// wire it is a `PageCodec` block; the hash is that of the page. `patch`: of the page only what changed, a `PagePatch`, on the wire a `PageCodec` block; the
/// hash is that of the page it makes.
struct PageLocation: Equatable {
    static let pageBytes = 4096
    static let fillBit: UInt64 = 1 << 63
    static let droppedBit: UInt64 = 1 << 62
    static let compressedBit: UInt64 = 1 << 61
    static let patchBit: UInt64 = 1 << 60
    static let highestBlock = 0xffff
    static let highestPage: UInt64 = (1 << 40) - 1

    var word: UInt64

    init(word: UInt64) { self.word = word }

    init(block: Int, offset: UInt64) {
        word = UInt64(truncatingIfNeeded: block) << 40 | offset >> 12
    }

    var block: Int { Int(word >> 40 & 0xffff) }
    var page: UInt64 { word & Self.highestPage }
    var isFill: Bool { word & Self.fillBit != 0 }
    var isCompressed: Bool { word & Self.compressedBit != 0 }
    var isPatch: Bool { word & Self.patchBit != 0 }
    var isDropped: Bool { word & Self.droppedBit != 0 }
    /// Bits that must be 0 on the wire.
    var hasUnknownBits: Bool { word & (Self.droppedBit | 0xf << 56) != 0 }
}

/// A page as captured: filled in by the reader (location, bytes), completed by the shipper (hash). 32 bytes, no references.
struct PageRecord {
    var location: PageLocation
    /// Where the page lies in a receive buffer; nil for fills.
    var bytes: UnsafeRawPointer?
    /// XXH3-128 of the page; for fills `hashLow` is the byte.
    var hashLow: UInt64
    var hashHigh: UInt64
}
