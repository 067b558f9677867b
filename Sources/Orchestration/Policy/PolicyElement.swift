import ControlProtocol
import Foundation
import FoundationXML

/// One element of a policy, read strictly.
struct PolicyElement {
    let name: String
    let namespace: String
    fileprivate(set) var children: [PolicyElement] = []
    private let attributes: [String: String]
    /// Text between the children.
    fileprivate var text = ""

    fileprivate init(name: String, namespace: String, attributes: [String: String]) {
        (self.name, self.namespace) = (name, namespace)
        // Declarations of namespaces are no attributes.
        self.attributes = attributes.filter { $0.key != "xmlns" && !$0.key.hasPrefix("xmlns:") }
    }

    subscript(attribute: String) -> String? { attributes[attribute] }

    /// Throws for whatever else is there.
    func allow(attributes known: [String], children names: [String] = [], repeated: Set<String> = []) throws(ControlFailure) {
        if let unknown = attributes.keys.sorted().first(where: { !known.contains($0) }) {
            throw ControlFailure("Unknown attribute '\(unknown)' of <\(name)>", advice: known.isEmpty ? "It has none" : "It may have \(known.joined(separator: ", "))")
        }
        let stray = text.trimmingCharacters(in: .whitespacesAndNewlines)
        if !stray.isEmpty { throw ControlFailure("There is text in <\(name)>: '\(stray.prefix(40))'", advice: "Remove it") }
        var seen = Set<String>()
        for child in children {
            guard names.contains(child.name) else {
                throw ControlFailure("Unknown element <\(child.name)> in <\(name)>", advice: names.isEmpty ? "It has none" : "It may have \(names.map { "<\($0)>" }.joined(separator: ", "))")
            }
            guard seen.insert(child.name).inserted || repeated.contains(child.name) else { throw ControlFailure("<\(child.name)> occurs twice in <\(name)>", advice: "Remove one of the two") }
        }
        guard children.count <= DomainPolicy.mostEntries else { throw ControlFailure("<\(name)> has \(children.count) elements", advice: "Use at most \(DomainPolicy.mostEntries)") }
    }

    func needed(_ attribute: String) throws(ControlFailure) -> String {
        guard let value = attributes[attribute], !value.isEmpty else { throw ControlFailure("<\(name)> lacks the attribute '\(attribute)'") }
        return value
    }

    /// The meaning of an attribute that is one of a few words; nil when it is not there.
    func choice<T>(_ attribute: String, _ meanings: [String: T]) throws(ControlFailure) -> T? {
        guard let text = attributes[attribute] else { return nil }
        guard let value = meanings[text] else { throw bad(attribute, meanings.keys.sorted().joined(separator: " or ")) }
        return value
    }

    func choice<T: RawRepresentable & CaseIterable>(_ attribute: String) throws(ControlFailure) -> T? where T.RawValue == String {
        try choice(attribute, Dictionary(uniqueKeysWithValues: T.allCases.map { ($0.rawValue, $0) }))
    }

    func bad(_ attribute: String, _ expected: String) -> ControlFailure {
        ControlFailure("'\((attributes[attribute] ?? "").prefix(40))' is no value of attribute '\(attribute)' of <\(name)>", advice: "Use \(expected)")
    }
}

/// XML to elements. With XMLParser: XMLDocument of the Foundation for Linux (6.0 seen) reads on past what is not well-formed, and takes the process down over an
/// empty text.
final class PolicyElementReader: NSObject, XMLParserDelegate {
    private var open: [PolicyElement] = []
    private var root: PolicyElement?

    /// Nil: not well-formed. Entities of one's own count as that: nothing here needs them, and they can grow.
    static func read(_ xml: String) -> PolicyElement? {
        guard !xml.isEmpty, !xml.contains("<!DOCTYPE") else { return nil }
        let parser = XMLParser(data: Data(xml.utf8))
        parser.shouldProcessNamespaces = true
        let reader = PolicyElementReader()
        parser.delegate = reader
        return parser.parse() && reader.open.isEmpty ? reader.root : nil
    }

    func parser(_ parser: XMLParser, didStartElement name: String, namespaceURI: String?, qualifiedName: String?, attributes: [String: String] = [:]) {
        open.append(PolicyElement(name: name, namespace: namespaceURI ?? "", attributes: attributes))
    }

    func parser(_ parser: XMLParser, foundCharacters string: String) {
        if !open.isEmpty { open[open.count - 1].text += string }
    }

    func parser(_ parser: XMLParser, didEndElement name: String, namespaceURI: String?, qualifiedName: String?) {
        guard let element = open.popLast() else { return }
        if open.isEmpty { root = element } else { open[open.count - 1].children.append(element) }
    }
}
