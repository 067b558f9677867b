/// One of libvirt's enumerations. Newer daemons send values that this code has never heard of: such a value stays what it is, a number,
/// compares unequal to every constant, and prints as its number. The constants' values are checked against libvirt's API description by
/// `ApiDescriptionTests`.
public protocol NamedNumber: RawRepresentable, Hashable, Sendable, CustomStringConvertible where RawValue == Int32 {
    init(rawValue: Int32)
    /// What each value is called, for people.
    static var names: [Int32: String] { get }
}

extension NamedNumber {
    public var description: String { Self.names[rawValue] ?? String(rawValue) }
    /// Whether this value has a constant here.
    public var isKnown: Bool { Self.names[rawValue] != nil }
}

/// A version as libvirt numbers them: 1 000 000 * major + 1 000 * minor + release.
public struct Version: Comparable, Hashable, Sendable, CustomStringConvertible {
    public let major: Int
    public let minor: Int
    public let release: Int

    public init(_ major: Int, _ minor: Int, _ release: Int = 0) {
        (self.major, self.minor, self.release) = (major, minor, release)
    }

    /// From libvirt's one number, e.g. 9 000 000 for 9.0.0.
    public init(number: UInt) {
        self.init(Int(number / 1_000_000), Int(number / 1_000 % 1_000), Int(number % 1_000))
    }

    public static func < (a: Version, b: Version) -> Bool {
        (a.major, a.minor, a.release) < (b.major, b.minor, b.release)
    }

    public var description: String { "\(major).\(minor).\(release)" }
}
