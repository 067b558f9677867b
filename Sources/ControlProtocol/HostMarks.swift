/// A host that is not trusted: it gets no guests and no shadows until an administrator clears it.
public struct HostMark: Codable, Sendable, Equatable {
    public var host: String
    public var reason: String
    /// ISO 8601 UTC.
    public var since: String

    public init(host: String, reason: String, since: String) {
        (self.host, self.reason, self.since) = (host, reason, since)
    }
}

/// The answer to `hosts`.
public struct HostsReport: Codable, Sendable, Equatable {
    public struct Host: Codable, Sendable, Equatable {
        public var name: String
        public var isThisHost: Bool
        /// Absent: it is trusted.
        public var suspect: HostMark?

        enum CodingKeys: String, CodingKey {
            case name, suspect
            case isThisHost = "this_host"
        }

        public init(name: String, isThisHost: Bool, suspect: HostMark?) {
            (self.name, self.isThisHost, self.suspect) = (name, isThisHost, suspect)
        }
    }

    public var schema = ControlProtocolVersion.schema
    public var host: String
    public var hosts: [Host]

    public init(host: String, hosts: [Host]) { (self.host, self.hosts) = (host, hosts) }
}
