/// What only counts up, for rates and for Prometheus.
public struct ProtectionCounters: Codable, Sendable, Equatable {
    // Since its worker began: each attempt to protect begins at 0.
    public var epochsCaptured: UInt64 = 0
    /// The guest's pauses, and all of them together.
    public var pauses: UInt64 = 0
    public var pauseMsTotal = 0.0
    /// Part of `bytes_sent`: what had to be sent a second time after the connection broke.
    public var bytesResent: UInt64 = 0
    // Since the service began.
    public var swaps: UInt64 = 0
    public var failovers: UInt64 = 0
    /// Times that the shadow stopped following.
    public var failures: UInt64 = 0
    /// Times that it was made anew and followed again.
    public var resyncs: UInt64 = 0
    /// Time without a shadow that follows, after there had been one.
    public var degradedSeconds = 0.0

    enum CodingKeys: String, CodingKey {
        case pauses, swaps, failovers, failures, resyncs
        case epochsCaptured = "epochs_captured"
        case pauseMsTotal = "pause_ms_total"
        case bytesResent = "bytes_resent"
        case degradedSeconds = "degraded_seconds"
    }

    public init() {}
}
