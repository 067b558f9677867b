/// What `policy` asks for.
public struct PolicyRequest: Codable, Sendable {
    public enum Action: String, Codable, Sendable, CaseIterable {
        case get, set, clear
    }
    public var action: Action
    /// `set`: the new policy, or its XML.
    public var policy: DomainPolicy?
    public var xml: String?

    public init(_ action: Action, policy: DomainPolicy? = nil, xml: String? = nil) {
        (self.action, self.policy, self.xml) = (action, policy, xml)
    }
}

/// The answer to `policy`.
public struct PolicyReport: Codable, Sendable {
    public var schema = ControlProtocolVersion.schema
    public var domain: String
    public var uuid: String
    /// Absent: the domain has none.
    public var policy: DomainPolicy?
    /// As it stands in the domain's metadata.
    public var xml: String?

    public init(domain: String, uuid: String, policy: DomainPolicy?, xml: String?) {
        (self.domain, self.uuid, self.policy, self.xml) = (domain, uuid, policy, xml)
    }
}

/// The answer to `placement`: where a domain's shadow would go, and why.
public struct PlacementReport: Codable, Sendable {
    public struct Candidate: Codable, Sendable, Equatable {
        public enum Verdict: String, Codable, Sendable {
            /// The shadow goes there.
            case chosen
            /// It could go there, another host suits better.
            case fits
            case excluded
        }
        public var host: String
        public var verdict: Verdict
        /// Preferences that it fulfils.
        public var score: Int
        /// Labels in which it differs from the guest's host.
        public var differs: [String]
        public var labels: HostLabels?
        /// After what shadows that are there may still take.
        public var freeBytes: UInt64?
        public var reservedBytes: UInt64?
        /// Why it is excluded, or what speaks against it.
        public var reasons: [String]

        enum CodingKeys: String, CodingKey {
            case host, verdict, score, differs, labels, reasons
            case freeBytes = "free_memory_bytes"
            case reservedBytes = "reserved_memory_bytes"
        }

        public init(host: String, verdict: Verdict, score: Int = 0, differs: [String] = [], labels: HostLabels? = nil, freeBytes: UInt64? = nil,
                    reservedBytes: UInt64? = nil, reasons: [String] = []) {
            self.host = host
            self.verdict = verdict
            self.score = score
            self.differs = differs
            self.labels = labels
            self.freeBytes = freeBytes
            self.reservedBytes = reservedBytes
            self.reasons = reasons
        }
    }

    public var schema = ControlProtocolVersion.schema
    public var domain: String
    public var host: String
    /// Of the guest's host.
    public var labels: HostLabels
    public var rules: [DomainPolicy.Rule]
    /// Best first.
    public var candidates: [Candidate]

    public init(domain: String, host: String, labels: HostLabels, rules: [DomainPolicy.Rule], candidates: [Candidate]) {
        (self.domain, self.host, self.labels, self.rules, self.candidates) = (domain, host, labels, rules, candidates)
    }

    public var chosen: Candidate? { candidates.first { $0.verdict == .chosen } }
}

/// The answer to `drain` and `undrain`.
public struct DrainReport: Codable, Sendable {
    public struct Step: Codable, Sendable, Equatable {
        public enum Result: String, Codable, Sendable {
            /// The guest went to `host` (drain), or came from there (undrain).
            case moved
            /// The shadow that is held here is being made elsewhere.
            case replaced
            /// With --dry-run: that is what would be tried.
            case planned
            /// It stays; `detail` says why.
            case failed
            /// Its turn did not come: the command was ended before.
            case notTried = "not_tried"
        }
        public var domain: String
        public var role: Role
        public var result: Result
        public var host: String?
        /// How, or why not.
        public var detail: String

        public init(_ domain: String, _ role: Role, _ result: Result, host: String? = nil, detail: String) {
            (self.domain, self.role, self.result, self.host, self.detail) = (domain, role, result, host, detail)
        }
    }

    public var schema = ControlProtocolVersion.schema
    public var host: String
    public var isDraining: Bool
    /// It was ended before its time.
    public var wasCancelled: Bool
    public var steps: [Step]

    enum CodingKeys: String, CodingKey {
        case schema, host, steps
        case isDraining = "draining"
        case wasCancelled = "cancelled"
    }

    public init(host: String, isDraining: Bool, wasCancelled: Bool = false, steps: [Step]) {
        (self.host, self.isDraining, self.wasCancelled, self.steps) = (host, isDraining, wasCancelled, steps)
    }
}
