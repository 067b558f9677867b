import CLibvirt
import Foundation

/// libvirt's named values (`virTypedParameter`), in their order. A name that is not there was not reported, which is not 0: every
/// accessor answers nil for it.
public struct TypedParameters: Sendable, Hashable, ExpressibleByDictionaryLiteral {
    public enum Value: Sendable, Hashable {
        case int(Int32)
        case uint(UInt32)
        case long(Int64)
        case ulong(UInt64)
        case double(Double)
        case bool(Bool)
        case string(String)
    }

    public struct Entry: Sendable, Hashable {
        public let name: String
        public let value: Value
    }

    /// Names may repeat.
    public private(set) var entries: [Entry] = []

    public init() {}

    public init(dictionaryLiteral elements: (String, Value)...) {
        entries = elements.map { Entry(name: $0.0, value: $0.1) }
    }

    public mutating func append(_ name: String, _ value: Value) { entries.append(Entry(name: name, value: value)) }

    public var isEmpty: Bool { entries.isEmpty }
    public var names: [String] { entries.map(\.name) }

    /// The first value of that name.
    public subscript(name: String) -> Value? { entries.first { $0.name == name }?.value }

    public func all(_ name: String) -> [Value] { entries.filter { $0.name == name }.map(\.value) }

    /// A number of any of the integer types; nil when it is not there, is no integer, or does not fit.
    public func integer(_ name: String) -> Int64? { self[name]?.integer }

    /// The same, unsigned.
    public func unsigned(_ name: String) -> UInt64? { self[name]?.unsigned }

    public func double(_ name: String) -> Double? {
        if case .double(let value)? = self[name] { value } else { integer(name).map(Double.init) }
    }

    public func bool(_ name: String) -> Bool? {
        if case .bool(let value)? = self[name] { value } else { nil }
    }

    public func string(_ name: String) -> String? {
        if case .string(let value)? = self[name] { value } else { nil }
    }
}

extension TypedParameters.Value {
    public var integer: Int64? {
        switch self {
        case .int(let value): Int64(value)
        case .uint(let value): Int64(value)
        case .long(let value): value
        case .ulong(let value): Int64(exactly: value)
        case .double, .bool, .string: nil
        }
    }

    public var unsigned: UInt64? {
        if case .ulong(let value) = self { value } else { integer.flatMap(UInt64.init(exactly:)) }
    }

    /// nil for a type that a newer libvirt may have.
    init?(_ parameter: virTypedParameter) {
        let value = parameter.value
        switch UInt32(bitPattern: parameter.type) {
        case VIR_TYPED_PARAM_INT.rawValue: self = .int(value.i)
        case VIR_TYPED_PARAM_UINT.rawValue: self = .uint(value.ui)
        case VIR_TYPED_PARAM_LLONG.rawValue: self = .long(value.l)
        case VIR_TYPED_PARAM_ULLONG.rawValue: self = .ulong(value.ul)
        case VIR_TYPED_PARAM_DOUBLE.rawValue: self = .double(value.d)
        case VIR_TYPED_PARAM_BOOLEAN.rawValue: self = .bool(value.b != 0)
        case VIR_TYPED_PARAM_STRING.rawValue:
            guard let string = value.s else { return nil }
            self = .string(String(cString: string))
        default: return nil
        }
    }
}

extension TypedParameters {
    /// Copies what libvirt returned.
    init(_ parameters: UnsafePointer<virTypedParameter>?, count: Int32) {
        for parameter in UnsafeBufferPointer(start: parameters, count: parameters == nil ? 0 : Int(max(0, count))) {
            guard let value = Value(parameter) else { continue }
            append(withUnsafeBytes(of: parameter.field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }, value)
        }
    }

    /// Takes over an array that libvirt allocated (`virTypedParamsFree`).
    static func owned(_ parameters: UnsafeMutablePointer<virTypedParameter>?, count: Int32) -> TypedParameters {
        defer { virTypedParamsFree(parameters, count) }
        return TypedParameters(parameters, count: count)
    }

    /// Lends the C form for the call (`virTypedParamsAddInt` and its siblings). nil, with libvirt's error set, if a name is too long.
    func withC<Result>(_ body: (UnsafeMutablePointer<virTypedParameter>?, Int32) -> Result?) -> Result? {
        var parameters: UnsafeMutablePointer<virTypedParameter>?
        var (count, capacity): (Int32, Int32) = (0, 0)
        defer { virTypedParamsFree(parameters, count) }
        for entry in entries {
            let result = switch entry.value {
            case .int(let value): virTypedParamsAddInt(&parameters, &count, &capacity, entry.name, value)
            case .uint(let value): virTypedParamsAddUInt(&parameters, &count, &capacity, entry.name, value)
            case .long(let value): virTypedParamsAddLLong(&parameters, &count, &capacity, entry.name, value)
            case .ulong(let value): virTypedParamsAddULLong(&parameters, &count, &capacity, entry.name, value)
            case .double(let value): virTypedParamsAddDouble(&parameters, &count, &capacity, entry.name, value)
            case .bool(let value): virTypedParamsAddBoolean(&parameters, &count, &capacity, entry.name, value ? 1 : 0)
            case .string(let value): virTypedParamsAddString(&parameters, &count, &capacity, entry.name, value)
            }
            guard result == 0 else { return nil }
        }
        return body(parameters, count)
    }
}
