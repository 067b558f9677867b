import CXXHash
import Glibc

struct Hash128: Equatable, Sendable {
    var low: UInt64
    var high: UInt64
}

/// XXH3 with a random secret. What is hashed comes from the guest, and with a secret that it cannot know it cannot prepare data that
/// passes for something else: a journal record within its own writes, or another chunk.
struct KeyedHash: Sendable {
    /// As many as xxHash makes itself; 136 is its least.
    static let secretBytes = 192
    let secret: [UInt8]

    init() {
        var random = SystemRandomNumberGenerator()
        let words = (0..<(Self.secretBytes / 8)).map { _ in random.next() }
        secret = words.withUnsafeBytes { Array($0) }
    }

    init?(secret: [UInt8]) {
        guard secret.count == Self.secretBytes else { return nil }
        self.secret = secret
    }

    func hash64(_ bytes: UnsafeRawPointer, _ count: Int) -> UInt64 {
        secret.withUnsafeBufferPointer { cxxhash_64(bytes, count, $0.baseAddress, $0.count) }
    }

    func hash128(_ bytes: UnsafeRawPointer, _ count: Int) -> Hash128 {
        let hash = secret.withUnsafeBufferPointer { cxxhash_128(bytes, count, $0.baseAddress, $0.count) }
        return Hash128(low: hash.low64, high: hash.high64)
    }
}
