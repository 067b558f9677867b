import Platform

/// Times and sizes of a server; the defaults suit a disk's mirror.
public struct NBDLimits: Sendable {
    /// From the greeting to the beginning of transmission.
    public var handshakeSeconds: Double = 10
    /// For the rest of a header or payload that has begun, and for a client to take its replies.
    public var transferSeconds: Double = 60
    /// Requests have to be multiples of it, and so has every export's size. A power of two, at most 64 KiB.
    public var minimumBlock: Int = 1
    /// Told to clients as the size that is best. A power of two.
    public var preferredBlock: Int = 64 << 10

    public init() {}
}

/// What a connection needs to know.
struct Settings: Sendable {
    let handshakeSeconds: Double
    let transferSeconds: Double
    let minimumBlock: Int
    let preferredBlock: Int
    let maximumPayload: Int

    init(_ limits: NBDLimits, maximumPayload: Int) {
        func isPowerOfTwo(_ value: Int) -> Bool { value > 0 && value & (value - 1) == 0 }
        // 64 KiB is what every client may read at once; beyond 32 MiB clients would have to be asked first.
        precondition(isPowerOfTwo(maximumPayload) && maximumPayload >= 64 << 10 && maximumPayload <= 32 << 20, "maximumPayload")
        precondition(isPowerOfTwo(limits.minimumBlock) && limits.minimumBlock <= 64 << 10, "minimumBlock")
        precondition(isPowerOfTwo(limits.preferredBlock) && limits.preferredBlock >= max(512, limits.minimumBlock), "preferredBlock")
        handshakeSeconds = limits.handshakeSeconds
        transferSeconds = limits.transferSeconds
        minimumBlock = limits.minimumBlock
        preferredBlock = min(limits.preferredBlock, maximumPayload)
        self.maximumPayload = maximumPayload
    }
}

/// Which exports have clients.
final class ExportClaims: Sendable {
    private let clients: Guarded<[Int: Int]> = Guarded([:])

    /// False when the export is to have one client only, and has one.
    func claim(_ index: Int, alone: Bool) -> Bool {
        clients.change { clients in
            let count = clients[index] ?? 0
            if alone && count > 0 { return false }
            clients[index] = count + 1
            return true
        }
    }

    func release(_ index: Int) {
        clients.change { $0[index] = ($0[index] ?? 1) - 1 }
    }
}
