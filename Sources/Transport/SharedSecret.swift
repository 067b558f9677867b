import CGnuTLS
import Foundation

/// The secret that all hosts of one group share. It never crosses the wire.
public struct SharedSecret: Sendable {
    private let key: [UInt8]
    /// False when no secret file is configured; such a service talks on loopback only.
    public let isConfigured: Bool

    public init(_ bytes: some Sequence<UInt8>) {
        key = Array(bytes)
        isConfigured = true
    }

    private init() {
        key = Array("shadow-virt on loopback, no secret configured".utf8)
        isConfigured = false
    }

    public static let none = SharedSecret()

    /// HMAC-SHA-256 over the parts, one after the other.
    func authenticate(_ parts: [[UInt8]]) -> [UInt8] {
        var digest = [UInt8](repeating: 0, count: 32)
        let text = parts.flatMap { $0 }
        let status = gnutls_hmac_fast(GNUTLS_MAC_SHA256, key, key.count, text, text.count, &digest)
        // An unusable digest must never compare equal to anything: all-zero on both sides would.
        return status == 0 ? digest : randomBytes(32)
    }
}

/// Unpredictable bytes from GnuTLS's generator.
public func randomBytes(_ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    if gnutls_rnd(GNUTLS_RND_RANDOM, &bytes, count) != 0 {
        var generator = SystemRandomNumberGenerator()
        for index in bytes.indices { bytes[index] = UInt8.random(in: 0...255, using: &generator) }
    }
    return bytes
}
