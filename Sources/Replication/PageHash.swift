import CXXHash
import Transport

/// XXH3 keyed with a random secret of the session, so that nobody can prepare guest memory that collides.
struct PageHash: Sendable {
    /// xxHash takes any secret of 136 bytes or more; 192 is what it generates itself.
    static let secretBytes = 192
    let secret: [UInt8]
    /// The hash of a page of zeros, which the page table keeps as 0.
    private let zeroLow: UInt64
    private let zeroHigh: UInt64

    init() {
        self.init(secret: randomBytes(Self.secretBytes))
    }

    init(secret: [UInt8]) {
        precondition(secret.count == Self.secretBytes)
        self.secret = secret
        let page = [UInt8](repeating: 0, count: PageLocation.pageBytes)
        let hash = cxxhash_128(page, page.count, secret, secret.count)
        zeroLow = hash.low64
        zeroHigh = hash.high64
    }

    /// Calls `body` with hash functions that use the secret by pointer.
    @inline(__always)
    func withHasher<R>(_ body: (Hasher) -> R) -> R {
        secret.withUnsafeBufferPointer { buffer in
            body(Hasher(secret: buffer, zeroLow: zeroLow, zeroHigh: zeroHigh))
        }
    }

    struct Hasher {
        let secret: UnsafeBufferPointer<UInt8>
        let zeroLow: UInt64
        let zeroHigh: UInt64

        @inline(__always)
        func hash128(_ bytes: UnsafeRawPointer, _ count: Int) -> (low: UInt64, high: UInt64) {
            let hash = cxxhash_128(bytes, count, secret.baseAddress, secret.count)
            return (hash.low64, hash.high64)
        }

        @inline(__always)
        func hash64(_ bytes: UnsafeRawPointer, _ count: Int) -> UInt64 {
            cxxhash_64(bytes, count, secret.baseAddress, secret.count)
        }

        @inline(__always)
        func isZeroPage(_ low: UInt64, _ high: UInt64) -> Bool { low == zeroLow && high == zeroHigh }
    }
}
