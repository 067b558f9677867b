import Glibc

/// Where a service listens or is reached: `ADDRESS:PORT`, an IPv6 address in brackets.
public struct PeerAddress: Sendable, Hashable, CustomStringConvertible {
    /// A numeric address without brackets, or a host name.
    public let host: String
    public let port: UInt16

    public init(host: String, port: UInt16) {
        self.host = host
        self.port = port
    }

    /// Nil when `text` is not `ADDRESS:PORT`, `NAME:PORT` or `[IPV6]:PORT` with a port from 1 to 65535.
    public init?(_ text: String) {
        guard let colon = text.lastIndex(of: ":") else { return nil }
        let digits = text[text.index(after: colon)...]
        guard !digits.isEmpty, digits.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }),
              let port = UInt16(digits), port > 0 else { return nil }
        let host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]"), host.count > 2 {
            let inner = String(host.dropFirst().dropLast())
            guard Self.isIPv6(inner) else { return nil }
            self.init(host: inner, port: port)
        } else {
            guard HostName.isValid(host) || Self.isIPv4(String(host)) else { return nil }
            // What looks like an IPv4 address but is none (10.0.0.300) must not pass as a name.
            if host.utf8.allSatisfy({ $0 == 0x2E || ($0 >= 0x30 && $0 <= 0x39) }), !Self.isIPv4(String(host)) { return nil }
            self.init(host: String(host), port: port)
        }
    }

    /// True for an address in digits: nothing has to be looked up.
    public var isNumeric: Bool { Self.isIPv4(host) || Self.isIPv6(host) }

    /// True for 127.0.0.0/8 and ::1, where only this machine gets in. A name is never taken for loopback: what it means may change.
    public var isLoopback: Bool {
        var v4 = in_addr()
        if inet_pton(AF_INET, host, &v4) == 1 { return UInt32(bigEndian: v4.s_addr) >> 24 == 127 }
        var v6 = in6_addr()
        guard inet_pton(AF_INET6, host, &v6) == 1 else { return false }
        return withUnsafeBytes(of: &v6) { bytes in bytes.dropLast().allSatisfy { $0 == 0 } && bytes.last == 1 }
    }

    public var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    static func isIPv4(_ text: String) -> Bool {
        var address = in_addr()
        return inet_pton(AF_INET, text, &address) == 1
    }

    /// With or without a zone (`fe80::1%eth0`).
    static func isIPv6(_ text: String) -> Bool {
        let parts = text.split(separator: "%", maxSplits: 1, omittingEmptySubsequences: false)
        if parts.count == 2, !HostName.isValid(parts[1]) { return false }
        var address = in6_addr()
        return parts.first.map { inet_pton(AF_INET6, String($0), &address) == 1 } ?? false
    }
}

/// The rules for names of hosts.
public enum HostName {
    /// Said in errors.
    public static let rule = "1 to 64 letters, digits, '.', '-', '_', beginning with a letter or digit"

    public static func isValid(_ name: some StringProtocol) -> Bool {
        guard (1...64).contains(name.utf8.count), let first = name.utf8.first, isAlphanumeric(first) else { return false }
        return name.utf8.allSatisfy { isAlphanumeric($0) || $0 == UInt8(ascii: ".") || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "_") }
    }

    /// Whether two names mean one host: upper and lower case are alike.
    public static func isSame(_ name: String, _ other: String) -> Bool { name.lowercased() == other.lowercased() }

    private static func isAlphanumeric(_ byte: UInt8) -> Bool {
        (0x30...0x39).contains(byte) || (0x61...0x7A).contains(byte | 0x20)
    }

    /// This machine's name as gethostname(2) has it.
    public static var ofThisMachine: String {
        var buffer = [CChar](repeating: 0, count: 256)
        guard gethostname(&buffer, buffer.count - 1) == 0 else { return "localhost" }
        return buffer.withUnsafeBufferPointer { bytes in
            String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
    }
}

/// Another host that shadows can live on, one element of `peers`.
public struct Peer: Sendable, Equatable {
    /// What `protect --to` and `status` call it.
    public let name: String
    public let address: PeerAddress
    /// How this host reaches the peer's libvirt.
    public let libvirtURI: String

    public init(name: String, address: PeerAddress, libvirtURI: String) {
        self.name = name
        self.address = address
        self.libvirtURI = libvirtURI
    }
}
