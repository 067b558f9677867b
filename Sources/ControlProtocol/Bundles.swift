/// An archive of what there is to know about a host at a moment, as `diagnose` makes it.
public struct BundleInfo: Codable, Sendable, Equatable {
    public var name: String
    public var bytes: Int
    /// ISO 8601 UTC: when it was made, or fetched.
    public var time: String
    /// The host that it was fetched from; absent: it was made where it lies.
    public var from: String?

    public init(name: String, bytes: Int, time: String, from: String? = nil) { (self.name, self.bytes, self.time, self.from) = (name, bytes, time, from) }
}

/// The answer to `diagnose --list`.
public struct BundleList: Codable, Sendable, Equatable {
    public var schema = ControlProtocolVersion.schema
    /// Where they lie.
    public var host: String
    /// In which folder.
    public var folder: String
    public var bundles: [BundleInfo]

    public init(host: String, folder: String, bundles: [BundleInfo]) { (self.host, self.folder, self.bundles) = (host, folder, bundles) }
}
