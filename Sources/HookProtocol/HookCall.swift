/// One call of libvirt's qemu hook, as it came: arguments and standard input (https://libvirt.org/hooks.html).
///
///     50-shadow-virt DOMAIN OPERATION SUB-OPERATION EXTRA  < domain's XML
///
/// A hint, not a promise: a call is lost when the service does not run. libvirt's events say the same, a moment later.
public struct HookCall: Codable, Sendable, Equatable {
    /// What libvirt is doing with the domain.
    public enum Operation: String, Codable, Sendable, CaseIterable {
        /// Before a start: nothing has been allocated yet; then labelled, but without a QEMU; then QEMU is there.
        case prepare, start, started
        /// After QEMU's end: labels still there; then everything released.
        case stopped, release
        /// The domain is about to come here by a migration, or from a saved image.
        case migrate, restore
        /// libvirt's daemon has found a running QEMU again after its restart, or taken over one that somebody else started.
        case reconnect, attach
    }

    /// The domain's name.
    public var domain: String
    public var operation: Operation
    /// `begin` or `end`; nil for libvirt's '-'.
    public var subOperation: String?
    /// Since libvirt 10.5 the reason of a `release` (`shutdown`, `destroyed`, `crashed`, `migrated`, …); nil for '-'.
    public var extra: String?
    /// The domain's XML; nil when there was none, or more than `xmlCeiling` bytes of it, or when it did not end in time.
    public var xml: String?

    /// Bytes of XML that are passed on. A guest with a hundred devices has 60 KiB; and what is below this fits into the socket
    /// (net.core.wmem_default, 208 KiB), so that nobody has to wait until the service reads.
    public static let xmlCeiling = 128 << 10

    enum CodingKeys: String, CodingKey {
        case domain, operation, extra, xml
        case subOperation = "sub_operation"
    }

    public init(domain: String, operation: Operation, subOperation: String? = nil, extra: String? = nil, xml: String? = nil) {
        self.domain = domain
        self.operation = operation
        self.subOperation = subOperation
        self.extra = extra
        self.xml = xml
    }

    /// From the hook's arguments without the program; nil for an operation that this release does not know, or for no domain.
    public init?(arguments: [String]) {
        guard arguments.count >= 2, !arguments[0].isEmpty, arguments[0] != "-", let operation = Operation(rawValue: arguments[1]) else { return nil }
        func word(_ index: Int) -> String? { arguments.indices.contains(index) && arguments[index] != "-" ? arguments[index] : nil }
        self.init(domain: arguments[0], operation: operation, subOperation: word(2), extra: word(3))
    }

    /// The call without its XML, for a log.
    public var summary: String { ([domain, operation.rawValue] + [subOperation, extra].compactMap { $0 }).joined(separator: " ") }
}
